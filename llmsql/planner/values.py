"""VALUES with calls on constants: each becomes a query of one row, which is planned like any other."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import calls_in, is_llm_call

MOST_CALLS = 50  # of one VALUES; each is a stage


def query_values(statement: exp.Expression) -> None:
    """Put the calls that stand in rows of VALUES into scalar subqueries; a long list of rows stays as it is."""
    for values in list(statement.find_all(exp.Values)):
        outermost = [call for call in calls_in(values) if not _is_inside_a_call(call, values)]
        if len(outermost) > MOST_CALLS:
            continue
        for call in outermost:
            if call.find(exp.Column, exp.Query, exp.Star) is None:
                call.replace(exp.Subquery(this=exp.Select(expressions=[call.copy()])))


def _is_inside_a_call(node: exp.Expression, root: exp.Expression) -> bool:
    while node.parent is not None and node.parent is not root:
        node = node.parent
        if is_llm_call(node):
            return True
    return False
