"""VALUES with calls on constants: each becomes a query of one row, which is planned like any other."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import outermost

MOST_CALLS = 50  # of one VALUES; each is a stage


def query_values(statement: exp.Expression) -> None:
    """Put the calls that stand in rows of VALUES into scalar subqueries; a long list of rows stays as it is."""
    for values in list(statement.find_all(exp.Values)):
        calls = outermost(calls_in(values))
        if len(calls) > MOST_CALLS:
            continue
        for call in calls:
            if call.find(exp.Column, exp.Query, exp.Star) is None:
                call.replace(exp.Subquery(this=exp.Select(expressions=[call.copy()])))
