"""Writing SELECTs whose calls cannot be staged as they stand, or see too many rows, in a form in which they can."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import own_calls
from llmsql.planner.correlated import meet_first
from llmsql.planner.distinct_first import distinct_first
from llmsql.planner.groups_first import group_first
from llmsql.planner.outer_joins import pairs_first
from llmsql.planner.planning import Planning
from llmsql.planner.scope import Scope
from llmsql.planner.semi_joins import reduce_semi_join
from llmsql.planner.windows_first import windows_first

REWRITES = (pairs_first, reduce_semi_join, meet_first, group_first, windows_first, distinct_first)


def restate(statement: exp.Expression, planning: Planning) -> None:
    """Apply every rewrite to every SELECT of a statement that binds, inner ones first; the results stay the same.

    Raises:
        CallError: a call is written wrongly.
    """
    for select in reversed(list(statement.find_all(exp.Select))):
        for rewrite in REWRITES:
            while own_calls(select) and rewrite(Scope(select, planning)):
                planning.note_originals(statement)
