"""Running a plan on a DuckDB connection: materialise, ask, and put the answers where the final statement reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import sqlglot

from llmsql.arguments import fields_table
from llmsql.model import Model
from llmsql.operator import evaluate
from llmsql.planner import Materialise, Plan, Stage
from llmsql.planner.parsing import parameters_of
from llmsql.progress import progress_bar
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics, StageStatistics

Run = Callable[..., list[tuple[Any, ...]]]


class PlanRunner:
    """Runs the steps of one plan. The scratch relations it makes are temporary and named in `scratch`, newest last.

    Args:
        run: `run(sql, parameters, **variables)` on the user's connection; variables can be read as tables.
        read: the rows of a query as an Arrow table.
        parameters: the statement's parameter values by name.
        model_for: the model that a call names, or the session's.
        settings: the session's settings.
        statistics: filled in as the plan runs.
    """

    def __init__(
        self,
        run: Run,
        read: Callable[[str], pa.Table],
        parameters: Mapping[str, Any],
        model_for: Callable[[str | None], Model],
        settings: Settings,
        statistics: QueryStatistics,
    ):
        self.scratch: list[tuple[str, str]] = []
        self._run = run
        self._read = read
        self._parameters = parameters
        self._model_for = model_for
        self._settings = settings
        self._statistics = statistics

    def run_steps(self, plan: Plan) -> None:
        """Run everything before the final statement."""
        for step in plan.steps:
            if isinstance(step, Stage):
                self._run_stage(step)
            else:
                self._materialise(step)

    def run_with_parameters(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL with those of the statement's parameters that stand in it."""
        if not self._parameters:
            return self._run(sql, {})
        return self._run(sql, parameters_of(sqlglot.parse_one(sql, dialect="duckdb"), self._parameters))

    def drop_scratch(self) -> None:
        """Drop what the steps made; the final statement must have run."""
        while self.scratch:
            kind, name = self.scratch.pop()
            self._run(f"DROP {kind} IF EXISTS {name}", {})

    def _materialise(self, step: Materialise) -> None:
        columns = f"({', '.join(step.columns)})" if step.columns else ""
        self.run_with_parameters(f"CREATE TEMP TABLE {step.name}{columns} AS {step.sql}")
        self.scratch.append(("TABLE", step.name))

    def _run_stage(self, stage: Stage) -> None:
        statistics = StageStatistics(call=stage.call_sql, place=stage.place)
        self._statistics.stages.append(statistics)
        asked, answers = f"{stage.name}_asked", f"{stage.name}_values"
        # Groups come in any order. The optimizer breaks ties by it, so a fixed order makes its choice, and with it the
        # answers, the same each time.
        order = f" ORDER BY hash({', '.join(stage.columns)})" if self._settings.reorder else ""
        self.run_with_parameters(
            f"CREATE TEMP TABLE {asked} AS SELECT row_number() OVER () - 1 AS id, * "
            f"FROM (SELECT * FROM ({stage.input_sql}){order})"
        )
        self.scratch.append(("TABLE", asked))
        self._run(f"CREATE TEMP TABLE {answers} (id BIGINT, value {stage.call.sql_type})", {})
        self.scratch.append(("TABLE", answers))
        counted = self._run(f"SELECT count(*), coalesce(sum(n), 0)::BIGINT FROM {asked}", {})
        statistics.distinct, statistics.rows = counted[0]
        total = statistics.distinct if self._settings.deduplicate else statistics.rows
        with progress_bar(stage.call_sql, total, statistics, self._settings.progress) as advance:
            for start in range(0, statistics.distinct, self._settings.batch_rows):
                self._ask(stage, asked, answers, start, statistics, advance)
        keys = ", ".join(f"q.{column} AS {key}" for column, key in zip(stage.columns, stage.keys))
        self._run(
            f"CREATE TEMP VIEW {stage.name} AS SELECT {keys}, v.value AS {stage.value} "
            f"FROM {asked} q JOIN {answers} v USING (id)",
            {},
        )
        self.scratch.append(("VIEW", stage.name))

    def _ask(
        self,
        stage: Stage,
        asked: str,
        answers: str,
        start: int,
        statistics: StageStatistics,
        advance: Callable[[int], None],
    ) -> None:
        """Ask one batch of distinct argument tuples and store the values under their ids."""
        stop = start + self._settings.batch_rows
        batch = self._read(
            f"SELECT id, n, {', '.join(stage.columns)} FROM {asked} WHERE id >= {start} AND id < {stop} ORDER BY id"
        )
        if not self._settings.deduplicate:
            batch = _repeated(batch)
        columns = batch.columns[2:]
        prompts = columns.pop(0) if stage.has_prompt_column else None
        values = evaluate(
            stage.call,
            fields_table(columns, list(stage.fields)),
            self._model_for(stage.call.model),
            self._settings,
            statistics,
            prompts=prompts,
            on_progress=advance,
        )
        answered = pa.table({"id": batch.column("id"), "value": values})
        self._run(
            f"INSERT INTO {answers} SELECT id, any_value(value) FROM llmsql_answered GROUP BY id",
            {},
            llmsql_answered=answered,
        )


def _repeated(batch: pa.Table) -> pa.Table:
    """Each tuple as often as it occurs, in an arbitrary but fixed order: what a query without deduplication asks."""
    rows = np.repeat(np.arange(batch.num_rows), batch.column("n").to_numpy())
    return batch.take(pa.array(np.random.default_rng(0).permutation(rows)))
