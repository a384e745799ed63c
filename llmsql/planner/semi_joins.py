"""A call in a subquery of IN sees only rows whose value the query around it looks for.

    SELECT * FROM products WHERE price > 5 AND id IN (SELECT product_id FROM reviews WHERE llm_filter('…', body))

Reviews of other products have no say in the answer, so the subquery gets one more predicate,
`product_id IN (SELECT id FROM products WHERE price > 5)`. A row with NULL has no say either; under NOT IN it would.
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import has_llm_call
from llmsql.planner.clauses import attach_ctes, conjuncts, over_sources, sources, visible_ctes
from llmsql.planner.determinism import instability
from llmsql.planner.grouping import Grouping
from llmsql.planner.planning import null_calls
from llmsql.planner.scope import Scope

REDUCED = "llmsql_reduced"  # a SELECT that has its predicate
LATER = ("distinct", "limit", "offset", "qualify", "sample", "laterals", "with_")  # what may need the other rows


def reduce_semi_join(scope: Scope) -> bool:
    """Give a subquery of IN the predicate that its value is looked for; False where that may not be said."""
    select, outer = scope.select, scope.select.find_ancestor(exp.Select)
    within = select.find_ancestor(exp.In, exp.Select)
    if outer is None or not isinstance(within, exp.In) or select.meta.get(REDUCED):
        return False
    where = outer.args.get("where")
    if where is None or not any(condition is within for condition in conjuncts(where.this)):
        return False
    query = within.args.get("query")
    if query is None or query.unnest() is not select or not _is_plain(scope, outer):
        return False
    item, value = select.expressions[0].unalias(), within.this
    around = Scope(outer, scope.planning)
    if not isinstance(item, exp.Column) or not isinstance(value, exp.Column) or item.is_star:
        return False
    if scope.is_text(item) is None or scope.is_text(item) != around.is_text(value) or not scope.stands_alone():
        return False
    looked_for = over_sources(outer, [value.copy()], around.repeatable_conditions(), [])
    ctes = [null_calls(cte) for cte in visible_ctes(outer)]
    if not scope.catalog.binds(attach_ctes(looked_for.copy(), ctes)):
        return False
    predicate = exp.In(this=item.copy(), query=exp.Subquery(this=looked_for))
    own = select.args.get("where")
    select.set("where", exp.Where(this=exp.and_(predicate, *(conjuncts(own.this) if own is not None else []))))
    select.meta[REDUCED] = True
    return True


def _is_plain(scope: Scope, outer: exp.Select) -> bool:
    """Whether each row of the subquery stands for itself, and the outer sources can be read once more."""
    select, catalog = scope.select, scope.catalog
    if len(select.expressions) != 1 or any(select.args.get(part) for part in LATER):
        return False
    if Grouping(select, catalog).is_grouped or select.expressions[0].find(exp.Window) is not None:
        return False
    ctes = visible_ctes(outer)
    return not any(has_llm_call(source) or instability(source, catalog, ctes) for source in sources(outer))
