"""Planning one SELECT: which rows each of its calls must see, and the SELECT without the calls.

The SELECT keeps its shape. Each call becomes a stage, and in the SELECT a column of the stage's result, which is
joined to its FROM on the values of the call's arguments. Calls in WHERE are staged first, after every predicate without
a call; the other calls see only the rows that are left.
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.carry import keep_order, limit_first, stop_early
from llmsql.planner.filters import stage_together
from llmsql.planner.in_place import leave_what_must_stay
from llmsql.planner.naming import name_calls
from llmsql.planner.outer_joins import filters_to_where
from llmsql.planner.planning import Planning
from llmsql.planner.scope import Scope
from llmsql.planner.staging import Staging


def plan_select(select: exp.Select, planning: Planning) -> None:
    """Stage the calls of one SELECT and rewrite it in place; calls of queries inside it are already planned.

    Raises:
        CallError: a call is written wrongly or names unknown columns.
    """
    scope = Scope(select, planning)
    if not scope.calls():
        return
    name_calls(scope)
    filters_to_where(scope)
    if not leave_what_must_stay(scope):
        return
    if isinstance(select.parent, exp.Exists) and not any(select.args.get(part) for part in ("limit", "offset")):
        select.limit(1, copy=False)  # EXISTS wants to know of one row
    staging = Staging(scope)
    stop = stop_early(scope)
    if stop is None:
        keep_order(scope)
    if not stage_together(scope, staging, stop):
        staging.stage_filters()
    staging.reuse_filters()
    if limit_first(scope):
        staging.start_over()
    staging.stage_others()
    staging.hide_result_columns()
