"""Running a plan on a Spark session: materialise, ask, and put the answers where the final statement reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llmsql.planner import Filters, Materialise, Plan, Stage
from llmsql.planner.plan import ROW_NUMBER
from llmsql.spark.asking import ask
from llmsql.spark.comparing import comparable, is_map
from llmsql.spark.dialect import spark_sql
from llmsql.spark.filtering import SparkFilterRunner
from llmsql.spark.kept_frames import read_once
from llmsql.spark.registration import Registration
from llmsql.spark.requirements import is_connect
from llmsql.spark.running import Running, task_errors
from llmsql.spark.stage_function import VALUE
from llmsql.statistics import QueryStatistics, StageStatistics


class SparkPlanRunner:
    """Runs one plan. What it persists is in `frames`, and the temporary views that it makes in `views`.

    It is to be used while `running` is entered.

    Args:
        spark: where the plan runs.
        run: runs SQL with the statement's parameters.
        registration: the model and the settings.
        statistics: filled in as the plan runs.
    """

    def __init__(
        self,
        spark: SparkSession,
        run: Callable[[str], DataFrame],
        registration: Registration,
        statistics: QueryStatistics,
    ):
        self.frames: list[DataFrame] = []
        self.views: list[str] = []
        self.running = Running(spark, registration.settings, statistics)
        self._spark = spark
        self._run = run
        self._registration = registration
        self._statistics = statistics
        self._stages: dict[Stage, StageStatistics] = {}
        self._maps: list[str] = []  # columns of answers that hold maps
        self._answers: dict[object, list[DataFrame]] = {}  # of stages that ask the same, one frame for each

    def run_steps(self, plan: Plan) -> None:
        """Run everything before the final statement.

        Raises:
            RowError, ModelError: as `ask`.
        """
        for step in plan.steps:
            self.running.check()
            if isinstance(step, Stage):
                self.ask(step)
            elif isinstance(step, Filters):
                self._filter(step)
            else:
                self._materialise(step)

    def run(self, sql: str) -> DataFrame:
        """SQL of the plan, with those of the statement's parameters that stand in it."""
        return self.run_text("", sql)

    def run_text(self, before: str, sql: str) -> DataFrame:
        """SQL of the plan behind some words, such as EXPLAIN."""
        return self._run(before + spark_sql(sql, self._maps))

    def run_final(self, plan: Plan, before: str = "") -> DataFrame:
        """Run the final statement, behind some words; the views can be dropped afterwards, as its plan holds what is
        behind them."""
        with task_errors():
            final = self.run_text(before, plan.final_sql)
            # Over Connect a frame is SQL until it is read, when the views are gone.
            return read_once(final) if plan.is_query and is_connect(self._spark) else final

    def drop_views(self) -> None:
        """Forget the names of what was made; `spark.catalog` would give back what is persisted behind them, too."""
        over_connect = is_connect(self._spark)
        catalog = self._spark.catalog if over_connect else self._spark._jsparkSession.sessionState().catalog()
        while self.views:
            catalog.dropTempView(self.views.pop())

    def ask(self, stage: Stage) -> StageStatistics:
        """Ask a stage about its input as it is now, but for what was asked before; its counters."""
        statistics = self._stages.get(stage)
        if statistics is None:
            statistics = self._stages[stage] = StageStatistics(call=stage.call_sql, place=stage.place)
            self._statistics.stages.append(statistics)
        asked, known = self._not_known(stage)
        answers = self._answer(asked, stage, statistics)
        known.append(answers)
        everything = reduce(DataFrame.unionAll, known)
        self.show(stage.name, everything.select(*stage.columns, VALUE).toDF(*stage.keys, stage.value))
        return statistics

    def missing(self, stage: Stage) -> DataFrame:
        """The tuples of the stage's input as it is now that nobody asked about yet."""
        return self._not_known(stage)[0]

    def show(self, name: str, frame: DataFrame) -> None:
        """Let the plan's SQL read a frame."""
        frame.createOrReplaceTempView(name)
        self.views.append(name)

    def _answer(self, asked: DataFrame, stage: Stage, statistics: StageStatistics) -> DataFrame:
        return ask(asked, stage, self._registration, statistics, self.running, self.frames)

    def _not_known(self, stage: Stage) -> tuple[DataFrame, list[DataFrame]]:
        """The tuples of a stage that nobody asked about yet, and the answers to others."""
        asked = self.run(stage.input_sql)
        self._maps += [key for column, key in zip(stage.columns, stage.keys) if is_map(asked.schema[column].dataType)]
        types = tuple(asked.schema[column].dataType.simpleString() for column in stage.columns)
        key = (stage.call, stage.fields, types) if self._registration.settings.deduplicate else stage.name
        known = self._answers.setdefault(key, [])
        for answers in known:
            renamed = answers.select(*stage.columns).toDF(*stage.keys)
            same = [
                comparable(asked[column], asked.schema[column].dataType).eqNullSafe(
                    comparable(renamed[key], renamed.schema[key].dataType)
                )
                for column, key in zip(stage.columns, stage.keys)
            ]
            asked = asked.join(renamed, reduce(lambda left, right: left & right, same), "left_anti")
        return asked, known

    def _filter(self, step: Filters) -> None:
        SparkFilterRunner(step, self, self._registration.settings, self._statistics).run()

    def _materialise(self, step: Materialise) -> None:
        frame = self.run(step.sql)
        if step.columns is not None:
            frame = frame.toDF(*step.columns).withColumn(ROW_NUMBER, F.monotonically_increasing_id())
        self.show(step.name, read_once(frame))
