"""Calls in a subquery that the query around it gives values: asked about the rows of both, then looked up.

    SELECT title, (SELECT max(llm('…', p.title, r.body)) FROM reviews r WHERE r.product_id = p.id AND r.rating > 3)
    FROM products p WHERE p.price > 10

A query over the rows of both, which is planned like any other, has the values that the subquery's calls depend on and
what the calls say of them. The subquery reads it beside its own FROM, and has no call any more.

    WITH met AS (SELECT p.title AS c0, r.body AS c1 FROM products p, reviews r
                 WHERE p.price > 10 AND r.product_id = p.id AND r.rating > 3 GROUP BY ALL),
      met_values AS (SELECT c0, c1, llm('…', c0 AS title, c1 AS body) AS v0 FROM met)
    SELECT title, (SELECT max(v0) FROM reviews r, met_values WHERE r.product_id = p.id AND r.rating > 3
                   AND p.title = c0 AND r.body = c1) FROM products p WHERE p.price > 10
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.added_ctes import Unmovable, add_ctes, cte, stable_sources
from llmsql.planner.calls import calls_in, is_llm_call
from llmsql.planner.clauses import (
    ancestors,
    attach_ctes,
    clause_of,
    conjuncts,
    is_above,
    outermost,
    table_named,
    visible_ctes,
)
from llmsql.planner.exact import same_value
from llmsql.planner.grouping import Grouping, is_aggregate
from llmsql.planner.naming import name_calls
from llmsql.planner.outer_joins import filters_to_where
from llmsql.planner.planning import CORRELATED, null_calls
from llmsql.planner.scope import Scope
from llmsql.planner.scratch_names import fresh_name

ROW_CLAUSES = ("where", "expressions", "group", "having", "order")
ENDS = (exp.Alias, exp.Ordered, exp.Order, exp.Distinct, exp.Filter, exp.Where, exp.Having, exp.Group, exp.Window)


def meet_first(scope: Scope) -> bool:
    """Take the calls out of a subquery that the query around it gives values; False where that cannot be done.

    Raises:
        CallError: a call is written wrongly.
    """
    outer = _giving(scope.select)
    if outer is None or not scope.may_be_correlated():
        return False
    name_calls(scope)
    if scope.stands_alone() and not any(node.meta.get(CORRELATED) for node in scope.calls()):
        return False
    filters_to_where(scope)
    try:
        _take_out(scope, outer)
    except Unmovable:
        return False
    return True


def _giving(select: exp.Select) -> exp.Select | None:
    """The nearest query around a subquery that has rows for it; those whose FROM begins with it have none."""
    outer = select.find_ancestor(exp.Select)
    while outer is not None and outer.args.get("from_") and is_above(outer.args["from_"], select):
        outer = outer.find_ancestor(exp.Select)
    return outer


def _take_out(scope: Scope, outer: exp.Select) -> None:
    select, catalog = scope.select, scope.catalog
    before = _sources_before(outer, select)
    _require_simple(scope, outer, before)
    where = select.args.get("where")
    conditions = conjuncts(where.this) if where is not None else []
    asking = [condition for condition in conditions if calls_in(condition)]
    plain = [condition for condition in conditions if not calls_in(condition)]
    values = _values(scope)
    columns = _columns([*asking, *values])
    if not columns or any(condition.find(exp.Query) is not None for condition in [*asking, *values]):
        raise Unmovable
    name = fresh_name("met")
    names = {f"{name}_c{number}": column for number, column in enumerate(columns)}
    met = exp.Select(expressions=[exp.alias_(column.copy(), alias) for alias, column in names.items()])
    own = [select.args["from_"].this] if select.args.get("from_") else []
    joins: list[exp.Join] = select.args.get("joins") or []

    def read(outer_where: list[exp.Expression]) -> exp.Select:
        query = met.copy()
        around = [item.copy() for item in before]
        query.set("from_", around[0])
        crossed = [exp.Join(this=item.copy(), kind="CROSS") for item in own]
        query.set("joins", [*around[1:], *crossed, *[join.copy() for join in joins]])
        kept = [condition.copy() for condition in [*outer_where, *conditions]]
        if kept:
            query.set("where", exp.Where(this=exp.and_(*kept, copy=False)))
        query.set("group", exp.Group(all=True))
        return query

    def binds(query: exp.Select) -> bool:
        ctes = [null_calls(one) for one in visible_ctes(outer)]
        return bool(catalog.binds(attach_ctes(null_calls(query), ctes)))

    if not binds(read([])):
        raise Unmovable  # it depends on a query further out, or a name means something else beside the outer FROM
    surviving = [condition for condition in _surviving(outer, scope) if binds(read([condition]))]
    ctes = stable_sources(
        [*[item.this for item in before], *own, *[join.this for join in joins]], outer, scope.planning
    )
    before = _sources_before(outer, select)
    own = [select.args["from_"].this] if select.args.get("from_") else []
    ctes.append(cte(name, read(surviving)))
    if values:
        ctes.append(cte(f"{name}_values", _asked(name, names, values)))
    table = f"{name}_values" if values else name
    for number, value in enumerate(values):
        for found in _same_nodes(select, value):
            found.replace(exp.column(f"{name}_v{number}", table=table))
    by_bytes = scope.planning.by_bytes
    same = [same_value(c.copy(), exp.column(n, table=table), by_bytes=by_bytes) for n, c in names.items()]
    select.set("where", exp.Where(this=exp.and_(*plain, *same)))
    if own:
        select.append("joins", exp.Join(this=table_named(table), kind="CROSS"))
    else:
        select.set("from_", exp.From(this=table_named(table)))
    add_ctes(outer, ctes)


def _asked(name: str, names: dict[str, exp.Column], values: list[exp.Expression]) -> exp.Select:
    """The rows that meet with the values of the expressions that ask about them."""

    def written(node: exp.Expression) -> exp.Expression:
        for alias, column in names.items():
            if node == column:
                return exp.column(alias, table=name)
        return node

    items: list[exp.Expression] = [exp.column(alias, table=name) for alias in names]
    for number, value in enumerate(values):
        items.append(exp.alias_(value.copy().transform(written), f"{name}_v{number}"))
    return exp.Select(expressions=items, from_=exp.From(this=table_named(name)))


def _sources_before(outer: exp.Select, select: exp.Select) -> list[exp.From | exp.Join]:
    """The outer FROM that the subquery sees: all of it, or what stands before it if it stands in FROM itself."""
    found: list[exp.From | exp.Join] = []
    for item in [outer.args.get("from_"), *(outer.args.get("joins") or [])]:
        if item is not None and is_above(item, select):
            if item.args.get("on") is not None and is_above(item.args["on"], select):
                raise Unmovable
            break
        if item is not None:
            found.append(item)
    if not found or outer.args.get("laterals"):
        raise Unmovable
    return found


def _require_simple(scope: Scope, outer: exp.Select, before: list[exp.From | exp.Join]) -> None:
    select = scope.select
    for query in (select, outer):
        if query.args.get("sample") or query.args.get("laterals") or query.find(exp.Columns) is not None:
            raise Unmovable
    joins: list[exp.Join] = select.args.get("joins") or []
    if any(join.side in ("RIGHT", "FULL") or join.method for join in joins):
        raise Unmovable
    if [one.alias for one in visible_ctes(select)] != [one.alias for one in visible_ctes(outer)]:
        raise Unmovable
    if any(isinstance(above, exp.With) and above.args.get("recursive") for above in ancestors(outer)):
        raise Unmovable
    items = [item.this for item in before] + [join.this for join in joins]
    items += [select.args["from_"].this] if select.args.get("from_") else []
    names = [item.alias_or_name.lower() for item in items]
    if len(set(names)) < len(names):
        raise Unmovable
    grouping = Grouping(select, scope.catalog)
    for node in scope.calls():
        if clause_of(node, select) not in ROW_CLAUSES or grouping.is_after_grouping(node):
            raise Unmovable


def _surviving(outer: exp.Select, scope: Scope) -> list[exp.Expression]:
    """The predicates of the outer WHERE without which fewer rows matter."""
    if any(join.side in ("RIGHT", "FULL") for join in outer.args.get("joins") or []):
        return []
    return Scope(outer, scope.planning).repeatable_conditions()


def _values(scope: Scope) -> list[exp.Expression]:
    """The expressions outside of WHERE that ask about a row: a whole item, or a whole argument of an aggregate."""
    found: list[exp.Expression] = []
    for call in scope.calls():
        if clause_of(call, scope.select) == "where":
            continue
        node: exp.Expression = call
        while node.parent is not scope.select and not isinstance(node.parent, ENDS):
            if node.parent is None or (is_aggregate(node.parent, scope.catalog) and not is_llm_call(node.parent)):
                break
            node = node.parent
        inside = node.find_all(exp.Func)
        if node.find(exp.Window, exp.Star) or any(is_aggregate(function, scope.catalog) for function in inside):
            raise Unmovable
        if node not in found:
            found.append(node)
    return outermost(found)


def _same_nodes(select: exp.Select, value: exp.Expression) -> list[exp.Expression]:
    wanted = value.copy()
    return outermost(
        [node for node in select.find_all(type(value)) if node == wanted and node.find_ancestor(exp.Select) is select]
    )


def _columns(expressions: list[exp.Expression]) -> list[exp.Column]:
    found: list[exp.Column] = []
    for expression in expressions:
        for column in expression.find_all(exp.Column):
            if isinstance(column.this, exp.Star):
                raise Unmovable
            if column not in found:
                found.append(column.copy())
    return found
