"""Running a plan on a DuckDB connection: materialise, ask, and put the answers where the final statement reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import sqlglot

from llmsql.answer_tables import AnswerTable, AnswerTables, Run
from llmsql.arguments import fields_table
from llmsql.filtering import FilterRunner
from llmsql.model import Model
from llmsql.operator import evaluate
from llmsql.planner import Filters, Materialise, Plan, Stage
from llmsql.planner.parsing import parameters_of
from llmsql.progress import ProgressBars
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics, StageStatistics

LOG = logging.getLogger(__name__)


class PlanRunner:
    """Runs the steps of one plan. The scratch relations it makes are temporary and named in `scratch`, newest last.

    Args:
        run: `run(sql, parameters, **variables)` on the user's connection; variables can be read as tables.
        read: the rows of a query as an Arrow table.
        parameters: the statement's parameter values by name.
        model_for: the model that a call names, or the session's.
        settings: the session's settings.
        statistics: filled in as the plan runs.
        watch: called while the model works; what it raises ends the statement.
    """

    def __init__(
        self,
        run: Run,
        read: Callable[[str], pa.Table],
        parameters: Mapping[str, Any],
        model_for: Callable[[str | None], Model],
        settings: Settings,
        statistics: QueryStatistics,
        watch: Callable[[], None],
    ):
        self.scratch: list[tuple[str, str]] = []
        self._run = run
        self._read = read
        self._parameters = parameters
        self._model_for = model_for
        self._settings = settings
        self._statistics = statistics
        self._watch = watch
        self._stages: dict[Stage, StageStatistics] = {}
        self._bars = ProgressBars(settings.progress)
        self._answers = AnswerTables(
            run, self.run_with_parameters, self.scratch, shared=settings.deduplicate, ordered=settings.reorder
        )

    def run_steps(self, plan: Plan) -> None:
        """Run everything before the final statement."""
        try:
            for step in plan.steps:
                if isinstance(step, Stage):
                    self._run_stage(step)
                elif isinstance(step, Filters):
                    self._filter(step)
                else:
                    self._materialise(step)
        finally:
            self._bars.close()

    def run_with_parameters(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL with those of the statement's parameters that stand in it."""
        return self._run(sql, self._parameters_in(sql))

    def explain(self, final_sql: str, how: str) -> list[tuple[str, str]]:
        """DuckDB's plan of the final statement as (key, text); `how` is what stands behind EXPLAIN, such as ANALYZE."""
        rows = self._run(f"EXPLAIN {how} {final_sql}", self._parameters_in(final_sql))
        return [(str(key), str(text)) for key, text in rows]

    def counted(self) -> dict[str, StageStatistics]:
        """The counters of the stages that ran, by name."""
        return {stage.name: statistics for stage, statistics in self._stages.items()}

    def drop_scratch(self) -> None:
        """Drop what the steps made; the final statement must have run."""
        while self.scratch:
            kind, name = self.scratch.pop()
            self._run(f"DROP {kind} IF EXISTS {name}", {})

    def _parameters_in(self, sql: str) -> dict[str, Any]:
        if not self._parameters:
            return {}
        return parameters_of(sqlglot.parse_one(sql, dialect="duckdb"), self._parameters)

    def _materialise(self, step: Materialise) -> None:
        columns = f"({', '.join(step.columns)})" if step.columns else ""
        self.run_with_parameters(f"CREATE TEMP TABLE {step.name}{columns} AS {step.sql}")
        self.scratch.append(("TABLE", step.name))

    def _filter(self, step: Filters) -> None:
        self._filter_runner(step).run()

    def _filter_runner(self, step: Filters) -> FilterRunner:
        return FilterRunner(
            step,
            self._run,
            self.run_with_parameters,
            self._run_stage,
            self._answers,
            self.scratch,
            self._settings,
            self._statistics,
        )

    def _run_stage(self, stage: Stage) -> StageStatistics:
        statistics = self._stages.get(stage)
        again = statistics is not None
        if statistics is None:
            statistics = self._stages[stage] = StageStatistics(call=stage.call_sql, place=stage.place)
            self._statistics.stages.append(statistics)
        wanted = self._answers.add(stage)
        table = wanted.table
        statistics.rows += wanted.rows
        statistics.distinct += table.size - wanted.start if again else wanted.distinct
        total = table.size - wanted.start if self._settings.deduplicate else wanted.rows
        name = f"{stage.call.function} for {stage.place}"
        LOG.info("stage %s: %d rows, %d distinct, %d not asked yet", name, wanted.rows, wanted.distinct, total)
        LOG.debug("stage %s is %s; its rows: %s", name, stage.call_sql, stage.input_sql)
        statistics.watchers.append(self._watch)
        try:
            with self._bars.stage(stage, stage.call_sql, total, statistics) as advance:
                for start in range(wanted.start, table.size, self._settings.batch_rows):
                    statistics.more = start + self._settings.batch_rows < table.size
                    self._ask(stage, table, start, statistics, advance)
        finally:
            statistics.watchers.clear()
            LOG.info(
                "stage %s: so far %d asked, %d from the cache, %d failed, %d of %d prompt tokens computed, "
                "%d generated, %.2f s in the model",
                name,
                statistics.asked,
                statistics.cached,
                statistics.failed,
                statistics.computed_tokens,
                statistics.prompt_tokens,
                statistics.output_tokens,
                statistics.model_seconds,
            )
        return statistics

    def _ask(
        self,
        stage: Stage,
        table: AnswerTable,
        start: int,
        statistics: StageStatistics,
        advance: Callable[[int], None],
    ) -> None:
        """Ask one batch of distinct argument tuples and store the values under their ids."""
        stop = start + self._settings.batch_rows
        columns = ", ".join(stage.columns)
        batch = self._read(
            f"SELECT id, n, {columns} FROM {table.tuples} WHERE id >= {start} AND id < {stop} ORDER BY id"
        )
        if not self._settings.deduplicate:
            batch = _repeated(batch)
        arguments = [
            _as_json(c) if kind == "JSON" else c for c, kind in zip(batch.columns[2:], self._answers.types_of(table))
        ]
        prompts = arguments.pop(0) if stage.has_prompt_column else None
        values = evaluate(
            stage.call,
            fields_table(arguments, list(stage.fields)),
            self._model_for(stage.call.model),
            self._settings,
            statistics,
            prompts=prompts,
            on_progress=advance,
        )
        answered_name = f"{table.name}_answered"  # no table of the user has such a name
        answered = pa.table({"id": batch.column("id"), "value": values})
        self._run(
            f"INSERT INTO {table.values} SELECT id, any_value(value) FROM {answered_name} GROUP BY id",
            {},
            **{answered_name: answered},
        )


def _as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that DuckDB handed over as texts, as the JSON that it is; pyarrow knows the type since version 19."""
    if not hasattr(pa, "json_"):
        return column
    kind = pa.json_(pa.string())
    texts = column.cast(pa.string())
    return pa.chunked_array([pa.ExtensionArray.from_storage(kind, chunk) for chunk in texts.chunks], kind)


def _repeated(batch: pa.Table) -> pa.Table:
    """Each tuple as often as it occurs, in an arbitrary but fixed order: what a query without deduplication asks."""
    rows = np.repeat(np.arange(batch.num_rows), batch.column("n").to_numpy())
    return batch.take(pa.array(np.random.default_rng(0).permutation(rows)))
