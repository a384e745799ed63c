"""CTEs that the planner adds to a SELECT."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import has_llm_call, is_llm_call
from llmsql.planner.clauses import attach_ctes, is_star, table_named, visible_ctes
from llmsql.planner.determinism import instability
from llmsql.planner.planning import Planning, null_calls
from llmsql.planner.scratch_names import fresh_name


class Unmovable(Exception):
    """A part of a statement cannot be written elsewhere; it must be planned as it stands."""


def cte(name: str, query: exp.Select) -> exp.CTE:
    """A CTE that is computed once."""
    return exp.CTE(this=query, alias=exp.TableAlias(this=table_named(name).this), materialized=True)


def add_ctes(select: exp.Select, ctes: list[exp.CTE]) -> None:
    """Put CTEs before the SELECT, or before the set operation that it is a part of."""
    owner: exp.Expression = select
    while isinstance(owner.parent, exp.SetOperation):
        owner = owner.parent
    with_ = owner.args.get("with_")
    if with_ is None:
        owner.set("with_", exp.With(expressions=ctes))
    else:
        with_.set("expressions", [*with_.expressions, *ctes])


def stable_sources(items: list[exp.Expression], select: exp.Select, planning: Planning) -> list[exp.CTE]:
    """CTEs for those items of FROM that must not be read twice as they stand, which are put in their places.

    Args:
        items: of the FROM of `select`, or of a query inside it.
        select: which the CTEs will be put before.
        planning: of the statement.

    Raises:
        Unmovable: such an item depends on other parts of the statement; nothing is changed then.
    """
    ctes = visible_ctes(select)
    unstable = [item for item in items if has_llm_call(item) or instability(item, planning.catalog, ctes)]
    for item in unstable:
        query = _with_arguments(exp.select("*").from_(item.copy()))
        if not planning.catalog.binds(attach_ctes(query, [null_calls(one) for one in ctes])):
            raise Unmovable
    found = []
    for item in unstable:
        name = fresh_name("source")
        item.replace(table_named(name, item.alias_or_name))
        found.append(cte(name, exp.select("*").from_(item)))
    return found


def _with_arguments(query: exp.Select) -> exp.Select:
    """The query with its calls as NULLs that still need the columns of the calls' arguments."""
    for node in reversed(list(query.find_all(exp.Anonymous))):  # inner calls come later
        if not is_llm_call(node):
            continue
        needed = [column.copy() for column in node.find_all(exp.Column) if not is_star(column)]
        null = null_calls(node)
        if needed:
            none = exp.Is(this=exp.Anonymous(this="row", expressions=needed), expression=exp.null())
            null = exp.Case(ifs=[exp.If(this=none, true=null)])
        node.replace(null)
    return query
