"""Distinct rows of a product of sources, without computing the product of all their rows.

A semantic join asks about pairs of values. Where no other condition connects the two sides, each is reduced to its
distinct values first: 10,000 rows by 10,000 rows with 100 values each are 10,000 pairs, not 100,000,000.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlglot import exp

from llmsql.planner.clauses import conjuncts

ROWS = "llmsql_rows"  # of a source, behind one of its distinct rows


def reduce_products(query: exp.Select, answers: Collection[str]) -> None:
    """Reduce the sources of a grouped query with `COUNT(*) AS n` to distinct rows, if it reads an unconnected product.

    Args:
        query: rewritten in place; untouched where sources are connected, or a column's source is not certain.
        answers: relations of answers, which are joined to the sources and hold one row for each of their rows.
    """
    joins = [join for join in query.args.get("joins") or [] if join.this.name not in answers]
    if not joins or query.args.get("laterals") or not all(_is_plain(join) for join in joins):
        return
    items = [query.args["from_"].this, *[join.this for join in joins]]
    named = {item.alias_or_name.lower(): item for item in items}
    if len(named) < len(items) or not all(_is_source(item) for item in items) or _connects(query, joins):
        return
    used: dict[str, dict[str, exp.Identifier]] = {name: {} for name in named}
    for column in _columns(query, items):
        name = column.table.lower()
        if column.table in answers:
            continue
        if name not in named or isinstance(column.this, exp.Star) or column.args.get("db"):
            return
        used[name].setdefault(column.name.lower(), column.this)
    for name, item in named.items():
        item.replace(_distinct(item, list(used[name].values())))
    rows: exp.Expression = exp.column(ROWS, table=items[0].alias_or_name, quoted=True)
    for item in items[1:]:
        rows = exp.Mul(this=rows, expression=exp.column(ROWS, table=item.alias_or_name, quoted=True))
    for count in list(query.find_all(exp.Count)):
        if count.parent_select is query and isinstance(count.this, exp.Star):
            count.replace(exp.cast(exp.Sum(this=rows.copy()), "BIGINT"))


def _is_plain(join: exp.Join) -> bool:
    return not (join.side or join.method or join.args.get("using")) and join.kind in ("", "INNER", "CROSS")


def _is_source(item: exp.Expression) -> bool:
    if isinstance(item, exp.Table):
        parts = ("joins", "pivots", "sample", "laterals", "only", "when", "version")
        return isinstance(item.this, exp.Identifier) and not any(item.args.get(part) for part in parts)
    return isinstance(item, exp.Subquery) and bool(item.alias) and not item.args.get("pivots")


def _connects(query: exp.Select, joins: list[exp.Join]) -> bool:
    """Whether a condition between sources leaves fewer rows than their product, as far as can be seen."""
    conditions = [join.args["on"] for join in joins if join.args.get("on")]
    where = query.args.get("where")
    if where is not None:
        conditions.append(where.this)
    for condition in conditions:
        for predicate in conjuncts(condition):
            if predicate.find(exp.Query) is not None:
                return True
            if isinstance(predicate, exp.EQ) and len({c.table.lower() for c in predicate.find_all(exp.Column)}) > 1:
                return True
    return False


def _columns(query: exp.Select, items: list[exp.Expression]) -> list[exp.Column]:
    """The columns of the query's own expressions, not of what its sources are made of."""
    inside = {id(column) for item in items for column in item.find_all(exp.Column)}
    with_ = query.args.get("with_")
    if with_ is not None:
        inside |= {id(column) for column in with_.find_all(exp.Column)}
    return [column for column in query.find_all(exp.Column) if id(column) not in inside]


def _distinct(item: exp.Expression, columns: list[exp.Identifier]) -> exp.Subquery:
    """A source reduced to these columns and a count of its rows for each of their values."""
    counted = exp.alias_(exp.Count(this=exp.Star()), ROWS, quoted=True)
    query = exp.Select(expressions=[*[exp.Column(this=column.copy()) for column in columns], counted])
    query.set("from_", exp.From(this=item.copy()))
    query.set("group", exp.Group(all=True))
    if not columns:
        query.set("having", exp.Having(this=exp.GT(this=exp.Count(this=exp.Star()), expression=exp.Literal.number(0))))
    alias = exp.TableAlias(this=exp.Identifier(this=item.alias_or_name, quoted=True))
    return exp.Subquery(this=query, alias=alias)
