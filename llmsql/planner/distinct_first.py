"""DISTINCT ON without calls in it chooses its rows in a subquery, so that the model sees only these.

SELECT DISTINCT ON (product_id) product_id, llm('Summarise', body) FROM reviews ORDER BY product_id, written
-> SELECT c0 AS product_id, llm('Summarise', c1 AS body)
   FROM (SELECT DISTINCT ON (product_id) product_id AS c0, body AS c1, written AS c2 FROM reviews
         ORDER BY product_id, written) ORDER BY c0, c2
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import clause_of, item_place
from llmsql.planner.grouping import Grouping
from llmsql.planner.halves import Halves, Uncuttable
from llmsql.planner.naming import name_calls
from llmsql.planner.scope import Scope


def distinct_first(scope: Scope) -> bool:
    """Cut a SELECT with DISTINCT ON in two; False where there is nothing to cut.

    Raises:
        CallError: a call is written wrongly.
    """
    select = scope.select
    distinct, order = select.args.get("distinct"), select.args.get("order")
    if distinct is None or distinct.args.get("on") is None or select.args.get("qualify"):
        return False
    if Grouping(select, scope.catalog).is_grouped or any(item.find(exp.Window) for item in select.expressions):
        return False
    name_calls(scope)
    asking = [node for node in scope.calls() if clause_of(node, select) == "expressions"]
    if not asking:
        return False
    try:
        halves = Halves(scope, "rows", lambda node: isinstance(node, exp.Column) and not halves.is_alias(node))
        chosen = [_resolved(halves, part) for part in (distinct, order) if part is not None]
        if any(calls_in(part) for part in chosen):
            return False
        lower = exp.Select(where=select.args.get("where"))
        for clause, part in zip(("distinct", "order"), chosen):
            lower.set(clause, part)
        halves.cut(lower, {"where": None, "distinct": None})
    except Uncuttable:
        return False
    return True


def _resolved(halves: Halves, clause: exp.Expression) -> exp.Expression:
    """A copy of DISTINCT ON or ORDER BY with the expression for each position and alias."""
    resolved = clause.copy()
    keys = resolved.args["on"].expressions if isinstance(resolved, exp.Distinct) else resolved.expressions
    for key in list(keys):
        value = key.this if isinstance(key, exp.Ordered) else key
        if isinstance(value, exp.Var):
            raise Uncuttable  # ORDER BY ALL
        place = item_place(value)
        if place is not None:
            value.replace(halves.select.expressions[place].unalias().copy())
        elif isinstance(value, exp.Column) and not value.table and value.name.lower() in halves.aliases:
            value.replace(halves.aliases[value.name.lower()].this.copy())
    return resolved
