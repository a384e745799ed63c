"""From a statement with LLM calls to stages and a final statement without any."""

from llmsql.planner.plan import InPlace, Materialise, Plan, Stage
from llmsql.planner.planning import Switches
from llmsql.planner.statement import plan_statement

__all__ = ["InPlace", "Materialise", "Plan", "Stage", "Switches", "plan_statement"]
