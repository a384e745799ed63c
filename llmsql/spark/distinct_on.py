"""DISTINCT ON, which Spark does not have, by row numbers.

SELECT DISTINCT ON (k) id, s AS text FROM t ORDER BY k, day LIMIT 3
-> SELECT v0 AS id, v1 AS text
   FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY k0 ORDER BY o0, o1) AS number
         FROM (SELECT id AS v0, s AS v1, k AS k0, k AS o0, day AS o1 FROM t))
   WHERE number = 1 ORDER BY o0, o1 LIMIT 3

Three levels, because QUALIFY and windows of the user's come before the choice, ORDER BY and LIMIT after it.
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.errors import QueryError

PREFIX = "_llmsql_distinct_"


def numbered(select: exp.Select) -> exp.Select:
    """The same rows without DISTINCT ON, with the names of its columns.

    Raises:
        QueryError: a key is given by its position, and there is a star before it.
    """
    distinct = select.args.get("distinct")
    if distinct is None or distinct.args.get("on") is None:
        return select
    inner = select.copy()
    items = inner.expressions
    keys = [_value(key, items) for key in inner.args["distinct"].args["on"].expressions]
    order = inner.args["order"].expressions if inner.args.get("order") else []
    stars = any(item.is_star for item in items)
    values = items if stars else [_named(item.unalias(), "value", place) for place, item in enumerate(items)]
    sorting = [_value(key.this, items) for key in order]
    hidden = [
        *(_named(key, "key", place) for place, key in enumerate(keys)),
        *(_named(key, "order", place) for place, key in enumerate(sorting)),
    ]
    inner.set("expressions", [*values, *hidden])
    for clause in ("distinct", "order", "limit", "offset"):
        inner.set(clause, None)
    by = [exp.Ordered(**{**key.args, "this": _column("order", place)}) for place, key in enumerate(order)]
    number = exp.Window(
        this=exp.RowNumber(),
        partition_by=[_column("key", place) for place in range(len(keys))],
        order=exp.Order(expressions=by or [_column("key", 0)]),
    )
    numbers = exp.select("*", exp.alias_(number, PREFIX + "number")).from_(inner.subquery(PREFIX + "rows"))
    chosen = exp.select(*_outputs(items, hidden)).from_(numbers.subquery(PREFIX + "numbers"))
    chosen = chosen.where(exp.column(PREFIX + "number").eq(1))
    if by:
        chosen.set("order", exp.Order(expressions=[key.copy() for key in by]))
    for clause in ("limit", "offset"):
        chosen.set(clause, select.args[clause].copy() if select.args.get(clause) else None)
    return chosen


def _outputs(items: list[exp.Expression], hidden: list[exp.Expression]) -> list[exp.Expression]:
    """The columns of the statement, for the level above the choice."""
    if any(item.is_star for item in items):
        added = [exp.column(name) for name in (*(one.alias for one in hidden), PREFIX + "number")]
        return [exp.Star(except_=added)]
    return [
        exp.alias_(_column("value", place), item.output_name or f"_col_{place}", quoted=True)
        for place, item in enumerate(items)
    ]


def _value(key: exp.Expression, items: list[exp.Expression]) -> exp.Expression:
    """The expression for a key that is a position, or the name of an item."""
    if isinstance(key, exp.Literal) and key.is_int:
        place = int(key.this) - 1
        before = items[: place + 1]
        if not 0 <= place < len(items) or any(item.is_star for item in before):
            raise QueryError(
                f"DISTINCT ON: there is no item {key.this} that is known before Spark has seen the statement"
            )
        return items[place].unalias().copy()
    if isinstance(key, exp.Column) and not key.table:
        for item in items:
            if isinstance(item, exp.Alias) and item.alias.lower() == key.name.lower():
                return item.this.copy()
    return key.copy()


def _named(value: exp.Expression, kind: str, place: int) -> exp.Expression:
    return exp.alias_(value.copy(), f"{PREFIX}{kind}_{place}")


def _column(kind: str, place: int) -> exp.Column:
    return exp.column(f"{PREFIX}{kind}_{place}")
