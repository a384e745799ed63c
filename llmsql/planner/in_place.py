"""What cannot be staged, and leaving it in place as a UDF."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import (
    ancestors,
    attach_ctes,
    clause_of,
    conjuncts,
    is_above,
    sources,
    table_named,
    visible_ctes,
)
from llmsql.planner.determinism import instability, volatile_function
from llmsql.planner.grouping import Grouping
from llmsql.planner.plan import InPlace, Materialise
from llmsql.planner.planning import CORRELATED, TEXT, in_place_call
from llmsql.planner.scope import Scope
from llmsql.planner.scratch_names import fresh_name


def leave_what_must_stay(scope: Scope) -> bool:
    """Leave in place what cannot be staged, compute once what is not stable; False when nothing is left to stage."""
    reason = scope.planning.keep_reason or _materialise_unstable_sources(scope) or _whole_select_reason(scope)
    if reason is not None:
        _leave_all(scope, reason)
        return False
    for node in scope.calls():
        reason = _call_reason(scope, node)
        if reason is not None:
            _leave_conjunct(scope, node, reason)
    return True


def _materialise_unstable_sources(scope: Scope) -> str | None:
    """Compute once what would not come out the same twice; a reason when that is not possible."""
    ctes = scope.planning.ctes
    for cte in ctes:
        reason = instability(cte.this, scope.catalog, [other for other in ctes if other is not cte])
        if reason is None:
            continue
        name = _computed_once(scope, exp.to_table(cte.alias), reason)
        cte.set("this", exp.select("*").from_(table_named(name)))
    for source, original in zip(sources(scope.select), sources(scope.original)):
        reason = instability(source, scope.catalog, ctes)
        if reason is None:
            continue
        alone = attach_ctes(exp.select("*").from_(original.copy()), visible_ctes(scope.original))
        if len(sources(scope.select)) > 1 and original.find(exp.Query) and not scope.catalog.binds(alone):
            return f"a part of FROM depends on another part and cannot be computed once ({reason})"
        name = _computed_once(scope, source.copy(), reason)
        source.replace(table_named(name, source.alias_or_name))
    return None


def _computed_once(scope: Scope, source: exp.Expression, reason: str) -> str:
    """Add the step that computes an item of FROM; the name of the table that the step makes."""
    name = fresh_name("source")
    query = attach_ctes(exp.select("*").from_(source), scope.planning.ctes)
    scope.planning.steps.append(Materialise(name, None, query.sql(dialect=scope.catalog.dialect), reason))
    return name


def _whole_select_reason(scope: Scope) -> str | None:
    select = scope.select
    if select.args.get("sample"):
        return "the SELECT samples its rows"
    if select.find(exp.Columns) is not None:
        return "COLUMNS(...) stands in the SELECT"
    if _reads_itself(select):
        return "a recursive CTE is run by the SQL engine itself"
    where = select.args.get("where")
    if where is not None:
        for conjunct in conjuncts(where.this):
            name = None if calls_in(conjunct) else volatile_function(conjunct, scope.catalog)
            if name is not None:
                return f"{name}() in WHERE may choose other rows each time"
    if not scope.stands_alone():
        return "the query around it gives it values (a correlated subquery)"
    return None


def _reads_itself(select: exp.Select) -> bool:
    """Whether the SELECT reads the recursive CTE that it is a part of."""
    ctes = [outer for outer in ancestors(select) if isinstance(outer, exp.CTE)]
    names = {cte.alias.lower() for cte in ctes if cte.parent is not None and cte.parent.args.get("recursive")}
    return any(table.name.lower() in names for table in select.find_all(exp.Table))


def _call_reason(scope: Scope, node: exp.Anonymous) -> str | None:
    if node.meta.get(CORRELATED):
        return "the query around it gives it values (a correlated subquery)"
    place = clause_of(node, scope.select)
    if _sees_elements(node):
        return "it sees the elements of a list, not rows"
    if place in ("from_", "joins", "laterals", "pivots"):
        return "it stands in FROM"
    if place in ("limit", "offset", "windows", "connect"):
        return f"it stands in {place.upper()}"
    group = scope.select.args.get("group")
    if place == "having" and group is not None and group.args.get("all"):
        return "GROUP BY ALL groups by the columns of HAVING, too"
    for argument in node.expressions:
        if argument.find(exp.Window) is not None:
            return "its arguments need a window function"
        if argument.find(exp.Query) is not None:
            return "its arguments hold a query"
        for function in argument.find_all(exp.Func):
            if isinstance(function, exp.AggFunc) or scope.catalog.is_aggregate(function.sql_name()):
                return "its arguments need an aggregate"
        name = volatile_function(argument, scope.catalog)
        if name is not None:
            return f"its arguments need {name}(), which answers anew each time"
    grouping = Grouping(scope.select, scope.catalog)
    if grouping.has_sets and grouping.is_after_grouping(node):
        return "it stands above GROUPING SETS"
    return None


def _sees_elements(node: exp.Anonymous) -> bool:
    """Whether a parameter of a lambda around the call stands in the call."""
    names = {
        parameter.name.lower()
        for outer in ancestors(node)
        if isinstance(outer, exp.Lambda)
        for parameter in outer.expressions
    }
    used = [part for part in node.find_all(exp.Identifier) if part.arg_key != "alias"]
    return any(part.name.lower() in names and not isinstance(part.parent, exp.Column) for part in used)


def _leave_all(scope: Scope, reason: str) -> None:
    while calls := scope.calls():
        _leave(scope, calls[0], reason)


def _leave_conjunct(scope: Scope, node: exp.Anonymous, reason: str) -> None:
    """Leave a call in place, and with it the calls inside it and those of its whole WHERE predicate."""
    if not any(parent is scope.select for parent in ancestors(node)):
        return  # already left with another call
    root: exp.Expression = node
    if clause_of(node, scope.select) == "where":
        root = next(c for c in conjuncts(scope.select.args["where"].this) if c is node or is_above(c, node))
    else:
        for parent in ancestors(node):
            if parent is scope.select:
                break
            if parent in scope.calls():
                root = parent
    while inside := [call for call in scope.calls() if call is root or is_above(root, call)]:
        _leave(scope, inside[0], reason)


def _leave(scope: Scope, node: exp.Anonymous, reason: str) -> None:
    parsed = scope.parse(node)
    scope.planning.in_place.append(InPlace(node.meta[TEXT], reason))
    node.replace(in_place_call(parsed, scope.planning.in_place_prefix))
