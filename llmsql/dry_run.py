"""A dry run: a plan whose SQL is run but for the final statement, and whose model is not asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llmsql.answer_tables import Run
from llmsql.execution import PlanRunner
from llmsql.forecast import EXACT, DryRun
from llmsql.guesses import Guesses, least_certain, tolerant
from llmsql.model import Model
from llmsql.planner import Filters, Materialise, Plan, Stage
from llmsql.planner.loosening import Loosened
from llmsql.settings import Settings
from llmsql.stand_in import StandInModel
from llmsql.statistics import QueryStatistics, StageStatistics


class DryRunner(PlanRunner):
    """Runs the steps of a plan with answers that stand in for those that are not in the result cache.

    Where rows depend on an answer that is not known, all rows are taken that may be meant.

    Args:
        run, read, parameters, model_for, settings, watch: as for `PlanRunner`.
        sample: rows of a batch at most whose tokens are counted; None counts all.
    """

    def __init__(
        self,
        run: Run,
        read: Callable[[str], pa.Table],
        parameters: Mapping[str, Any],
        model_for: Callable[[str | None], Model],
        settings: Settings,
        watch: Callable[[], None],
        sample: int | None = None,
    ):
        stand_ins: dict[str | None, StandInModel] = {}

        def stand_in(name: str | None) -> Model:
            if name not in stand_ins:
                stand_ins[name] = StandInModel(model_for(name), self._note_guess, settings.engine_options(), sample)
            return stand_ins[name]

        quiet = settings.changed(progress=False, on_error="null")
        super().__init__(run, read, parameters, stand_in, quiet, QueryStatistics(), watch)
        self.settings = settings
        self._guessed = False
        self._guesses = Guesses()

    def result(self, sql: str, plan: Plan) -> DryRun:
        """Run all steps.

        Raises:
            CallError, ModelError, QueryError: as when the statement runs.
        """
        self.run_steps(plan)
        return self._guesses.result(sql, plan, self.settings)

    def _materialise(self, step: Materialise) -> None:
        found = self._guesses.loosened(step.sql)
        super()._materialise(replace(step, sql=found.sql))
        self._note_relation(step.name, found, step.columns)

    def _filter(self, step: Filters) -> None:
        """All candidates, each predicate for those that the ones before leave for certain."""
        guesses = self._guesses
        candidates = guesses.loosened(step.candidates_sql)
        runner = self._filter_runner(step)
        columns = step.columns if step.enough is not None else (*step.columns, "n")
        total = runner.fill(candidates.sql, columns)
        runner.load(0, max(total, 1))
        for name in (step.name, step.batch):
            self._note_relation(name, candidates, step.columns)
        for one in step.filters:
            known = guesses.number
            for stage in one.stages:
                self._run_stage(stage, at_least=least_certain(step))
            if guesses.number == known and not guesses.loosened(one.passing_sql).depends:
                self.run_with_parameters(f"CREATE OR REPLACE TEMP TABLE {step.batch} AS {one.passing_sql}")

    def _run_stage(self, stage: Stage, at_least: str = EXACT) -> StageStatistics:
        counted = self._guesses.counted(stage)
        if counted is not None:
            return counted
        found = self._guesses.loosened(stage.input_sql)
        level = self._guesses.level(found, at_least)
        self._guessed = False
        asked = replace(stage, input_sql=found.sql, call=tolerant(stage.call))
        statistics = super()._run_stage(asked)
        statistics.failures.clear()
        # Another stage, whose answers this one shares, may have guessed.
        guessed = self._guessed or self._guesses.has(self._answers.table_of(asked).name)
        self._guesses.note_stage(stage, statistics, level, guessed)
        return statistics

    def _note_relation(self, name: str, found: Loosened, columns: tuple[str, ...] | None) -> None:
        def named() -> tuple[str, ...]:
            return columns or tuple(row[0] for row in self._run(f"DESCRIBE {name}", {}))

        self._guesses.note_relation(name, found, named)

    def _note_guess(self) -> None:
        self._guessed = True
