"""The text of EXPLAIN and EXPLAIN ANALYZE: the plan, what each stage asks or asked, and DuckDB's own plan."""

from __future__ import annotations

from llmsql.execution import PlanRunner
from llmsql.forecast import DryRun
from llmsql.planner import Plan
from llmsql.statistics import QueryStatistics, StageStatistics

Rows = list[tuple[str, str]]  # (what is explained, the text)
NOT_KNOWN = "(at most: these rows depend on answers that are not known yet; about: even more are possible)"


def explain_rows(plan: Plan, forecast: DryRun, runner: PlanRunner, how: str) -> Rows:
    """What a statement would do; its steps have run dry, and their relations are still there.

    `how`: what stands behind EXPLAIN, for DuckDB's own plan.
    """
    return [("llm_plan", forecast_text(plan, forecast)), *runner.explain(plan.final_sql, how)]


def forecast_text(plan: Plan, forecast: DryRun) -> str:
    """The plan, and what each of its stages would ask."""
    text = plan.explain({stage.name: str(stage) for stage in forecast.stages})
    if any(stage.certainty != "exact" for stage in forecast.stages):
        text += f"\n{NOT_KNOWN}"
    if forecast.over_budget is not None:
        text += f"\nthe budget would stop it: {forecast.over_budget}"
    return text


def analyzed_rows(plan: Plan, runner: PlanRunner, statistics: QueryStatistics, how: str) -> Rows:
    """What a statement did; runs its final statement."""
    rows = runner.explain(plan.final_sql, how)
    text = plan.explain({name: _measured(stage) for name, stage in runner.counted().items()})
    return [("llm_plan", f"{text}\n\n{statistics.report()}"), *rows]


def _measured(stage: StageStatistics) -> str:
    text = (
        f"{stage.rows:,} rows → {stage.distinct:,} distinct → {stage.cached:,} cached → {stage.asked:,} asked "
        f"in {stage.model_seconds:.2f} s"
    )
    if stage.prompt_tokens:
        predicted = "" if stage.predicted_hit_rate is None else f", predicted {stage.predicted_hit_rate:.1%}"
        text += (
            f"; {stage.prompt_tokens:,} prompt tokens, {stage.computed_tokens:,} computed "
            f"(hit rate {stage.hit_rate:.1%}{predicted}), {stage.output_tokens:,} generated"
        )
    return text
