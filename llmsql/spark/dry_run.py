"""What a statement would ask and cost in Spark, found without a model: all its SQL is run but the final statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llmsql.forecast import EXACT, DryRun
from llmsql.functions import Call
from llmsql.guesses import Guesses, least_certain, tolerant
from llmsql.model import Model
from llmsql.planner import Filters, Materialise, Plan, Stage
from llmsql.planner.plan import ROW_NUMBER
from llmsql.spark.asking import ask
from llmsql.spark.plan_runner import SparkPlanRunner
from llmsql.spark.registration import Registration
from llmsql.spark.reports import Report
from llmsql.spark.stage_function import StageFunction
from llmsql.spark.worker_models import worker_models
from llmsql.stand_in import StandInModel
from llmsql.statistics import QueryStatistics, StageStatistics


class SparkDryRunner(SparkPlanRunner):
    """Runs the steps of a plan with answers that stand in for those that are not in the result cache.

    Tokens are counted as the tasks would run them, partition by partition. See `llmsql.dry_run.DryRunner`.
    """

    def __init__(self, spark: SparkSession, run: Callable[[str], DataFrame], registration: Registration):
        unlimited = {"max_rows": None, "max_tokens": None, "max_seconds": None}
        quiet = registration.settings.changed(progress=False, on_error="null", **unlimited)
        # What is guessed was not asked, and counts nowhere else.
        super().__init__(spark, run, replace(registration, settings=quiet, counters=None), QueryStatistics())
        self._settings = registration.settings
        self._guesses = Guesses("spark")
        self._guessed: set[tuple[Call, tuple[str, ...]]] = set()

    def result(self, sql: str, plan: Plan) -> DryRun:
        """Run all steps.

        Raises:
            CallError, ModelError, QueryError: as when the statement runs.
        """
        self.run_steps(plan)
        return self._guesses.result(sql, plan, self._settings)

    def ask(self, stage: Stage, at_least: str = EXACT) -> StageStatistics:
        """Count what a stage would ask, and guess the answers."""
        counted = self._guesses.counted(stage)
        if counted is not None:
            return counted
        found = self._guesses.loosened(stage.input_sql)
        level = self._guesses.level(found, at_least)
        statistics = super().ask(replace(stage, input_sql=found.sql, call=tolerant(stage.call)))
        statistics.failures.clear()
        key = (stage.call, stage.fields)  # whose answers stages may share
        if statistics.asked:
            self._guessed.add(key)
        self._guesses.note_stage(stage, statistics, level, key in self._guessed)
        return statistics

    def _answer(self, asked: DataFrame, stage: Stage, statistics: StageStatistics) -> DataFrame:
        return ask(*(asked, stage, self._registration, statistics, self.running, self.frames), function=StandInFunction)

    def _materialise(self, step: Materialise) -> None:
        found = self._guesses.loosened(step.sql)
        super()._materialise(replace(step, sql=found.sql))
        self._guesses.note_relation(step.name, found, lambda: step.columns or self._spark.table(step.name).columns)

    def _filter(self, step: Filters) -> None:
        """All candidates, each predicate for those that the ones before leave for certain."""
        candidates = self._guesses.loosened(step.candidates_sql)
        frame = self.run(candidates.sql)
        if step.enough is None:
            frame = frame.toDF(*step.columns, "n")
        else:
            number = F.monotonically_increasing_id()
            frame = frame.toDF(*step.columns).withColumn(ROW_NUMBER, number).withColumn("n", F.lit(1).cast("bigint"))
        frame = frame.persist(StorageLevel.MEMORY_AND_DISK)
        self.frames.append(frame)
        self.show(step.name, frame)
        self.show(step.batch, frame.select(*step.needed, "n"))
        for name in (step.name, step.batch):
            self._guesses.note_relation(name, candidates, lambda: step.columns)
        for one in step.filters:
            known = self._guesses.number
            for stage in one.stages:
                self.ask(stage, least_certain(step))
            if self._guesses.number == known and not self._guesses.loosened(one.passing_sql).depends:
                self.show(step.batch, self.run(one.passing_sql))


class StandInFunction(StageFunction):
    """Answers from the result cache, and guesses."""

    def _model(self, call: Call, report: Report) -> Model:
        model = worker_models(self.model, self.settings).get(call.model)
        return StandInModel(model, lambda: None, self.settings.engine_options())
