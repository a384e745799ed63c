"""Reading and building the clauses of a SELECT in sqlglot's tree."""

from __future__ import annotations

from typing import TypeVar

from sqlglot import exp

N = TypeVar("N", bound=exp.Expression)
CHANGING = (exp.Update, exp.Delete, exp.Merge)  # the statements that change rows of a table


def sources(select: exp.Select) -> list[exp.Expression]:
    """The items of FROM: tables, subqueries, functions, joined ones included."""
    found = []
    if select.args.get("from_"):
        found.append(select.args["from_"].this)
    found += [join.this for join in select.args.get("joins") or []]
    return found + list(select.args.get("laterals") or [])


def over_sources(
    select: exp.Select, projections: list[exp.Expression], where: list[exp.Expression], ctes: list[exp.CTE]
) -> exp.Select:
    """A new query with the FROM of `select`, these projections and these predicates."""
    query = exp.Select(expressions=projections)
    for part in ("from_", "joins", "laterals"):
        value = select.args.get(part)
        if isinstance(value, list):
            query.set(part, [item.copy() for item in value])
        elif value is not None:
            query.set(part, value.copy())
    if where:
        query.set("where", exp.Where(this=exp.and_(*where)))
    return attach_ctes(query, ctes)


def attach_ctes(query: exp.Select, ctes: list[exp.CTE]) -> exp.Select:
    """The query with copies of those of these CTEs before it that it reads."""
    needed = _read_by(query, ctes)
    if needed:
        recursive = any(cte.parent is not None and cte.parent.args.get("recursive") for cte in needed)
        query.set("with_", exp.With(expressions=[cte.copy() for cte in needed], recursive=recursive))
    return query


def _read_by(query: exp.Select, ctes: list[exp.CTE]) -> list[exp.CTE]:
    """The CTEs that a query reads, or that one of those reads."""
    needed: list[exp.CTE] = []
    waiting: list[exp.Expression] = [query]
    while waiting:
        names = {table.name.lower() for table in waiting.pop().find_all(exp.Table)}
        found = [cte for cte in ctes if cte.alias.lower() in names and not any(cte is one for one in needed)]
        needed += found
        waiting += found
    return [cte for cte in ctes if any(cte is one for one in needed)]


def visible_ctes(select: exp.Expression) -> list[exp.CTE]:
    """The CTEs that `select` can refer to, in an order in which each sees those before it."""
    found: dict[str, exp.CTE] = {}
    chain: list[exp.Expression] = [select, *ancestors(select)]
    for inner, outer in reversed(list(zip([None, *chain], chain))):
        seen: list[exp.CTE] = []
        if isinstance(outer, exp.CTE) and isinstance(outer.parent, exp.With):
            siblings = outer.parent.expressions
            seen += siblings[: next(i for i, sibling in enumerate(siblings) if sibling is outer)]
        with_ = outer.args.get("with_") if not isinstance(outer, exp.With) else None
        if with_ is not None and inner is not with_:
            seen += with_.expressions
        for cte in seen:
            found.pop(cte.alias.lower(), None)
            found[cte.alias.lower()] = cte
    return list(found.values())


def table_named(name: str, alias: str = "") -> exp.Table:
    """A table of ours; its name is an identifier as it stands, and need not be parsed."""
    table = exp.Table(this=exp.Identifier(this=name, quoted=False))
    if alias:
        table.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
    return table


def conjuncts(condition: exp.Expression) -> list[exp.Expression]:
    """The predicates that AND connects."""
    unnested = condition.unnest()
    if isinstance(unnested, exp.And):
        return [*conjuncts(unnested.left), *conjuncts(unnested.right)]
    return [condition]


def disjuncts(condition: exp.Expression) -> list[exp.Expression]:
    """The predicates that OR connects."""
    unnested = condition.unnest()
    if isinstance(unnested, exp.Or):
        return [*disjuncts(unnested.left), *disjuncts(unnested.right)]
    return [condition]


def item_place(key: exp.Expression) -> int | None:
    """The place in the SELECT list, from 0, that a number in GROUP BY, ORDER BY or DISTINCT ON means."""
    is_number = isinstance(key, exp.Literal) and not key.is_string and key.name.isdecimal()
    return int(key.name) - 1 if is_number else None


def clause_of(node: exp.Expression, select: exp.Select) -> str:
    """The clause of the SELECT in which a node stands, by sqlglot's name: 'expressions', 'where', 'group', ..."""
    while node.parent is not None and node.parent is not select:
        node = node.parent
    return node.arg_key or ""


def ancestors(node: exp.Expression) -> list[exp.Expression]:
    """The nodes above, nearest first."""
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def is_above(node: exp.Expression, below: exp.Expression) -> bool:
    """Whether `below` stands inside `node`."""
    return any(parent is node for parent in ancestors(below))


def outermost(nodes: list[N]) -> list[N]:
    """Those of the nodes that stand inside none of the others."""
    among = {id(node) for node in nodes}
    return [node for node in nodes if not any(id(parent) in among for parent in ancestors(node))]


def hide_columns(star: exp.Star, names: list[str]) -> None:
    """Let a star not show these columns."""
    star.set("except_", [*(star.args.get("except_") or []), *[exp.column(name) for name in names]])


def is_star(item: exp.Expression) -> bool:
    """Whether an item is `*` or `t.*`."""
    return isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star))
