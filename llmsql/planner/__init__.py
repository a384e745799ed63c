"""From a statement with LLM calls to stages and a final statement without any."""

from llmsql.planner.plan import Filter, Filters, InPlace, Materialise, Plan, Stage
from llmsql.planner.planning import Switches
from llmsql.planner.statement import plan_statement

__all__ = ["Filter", "Filters", "InPlace", "Materialise", "Plan", "Stage", "Switches", "plan_statement"]
