"""Running a plan on a Spark session: materialise, ask, and put the answers where the final statement reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llmsql.planner import Materialise, Plan, Stage
from llmsql.planner.plan import ROW_NUMBER
from llmsql.spark.asking import ask, worker_errors
from llmsql.spark.dialect import spark_sql
from llmsql.spark.registration import Registration
from llmsql.spark.stage_function import VALUE
from llmsql.statistics import QueryStatistics, StageStatistics


class SparkPlanRunner:
    """Runs one plan. What it persists is in `frames`, and the temporary views that it makes in `views`.

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
        self._spark = spark
        self._run = run
        self._registration = registration
        self._statistics = statistics
        self._answers: dict[object, list[DataFrame]] = {}  # of stages that ask the same, one frame for each

    def run_steps(self, plan: Plan) -> None:
        """Run everything before the final statement.

        Raises:
            RowError, ModelError: as `ask`.
        """
        for step in plan.steps:
            if isinstance(step, Stage):
                self._run_stage(step)
            else:
                assert isinstance(step, Materialise), "filters are stages of their own"
                self._materialise(step)

    def run_final(self, plan: Plan) -> DataFrame:
        """Run the final statement; the views can be dropped afterwards, its plan holds what is behind them."""
        with worker_errors():
            return self._run(spark_sql(plan.final_sql))

    def drop_views(self) -> None:
        """Forget the names of what was made; `spark.catalog` would give back what is persisted behind them, too."""
        catalog = self._spark._jsparkSession.sessionState().catalog()
        while self.views:
            catalog.dropTempView(self.views.pop())

    def _materialise(self, step: Materialise) -> None:
        frame = self._run(spark_sql(step.sql))
        if step.columns is not None:
            frame = frame.toDF(*step.columns).withColumn(ROW_NUMBER, F.monotonically_increasing_id())
        frame = frame.persist(StorageLevel.MEMORY_AND_DISK)
        self.frames.append(frame)
        self._show(step.name, frame)

    def _run_stage(self, stage: Stage) -> None:
        statistics = StageStatistics(call=stage.call_sql, place=stage.place)
        self._statistics.stages.append(statistics)
        asked = self._run(spark_sql(stage.input_sql))
        types = tuple(asked.schema[column].dataType.simpleString() for column in stage.columns)
        key = (stage.call, stage.fields, types) if self._registration.settings.deduplicate else stage.name
        known = self._answers.setdefault(key, [])
        for answers in known:
            renamed = answers.select(*stage.columns).toDF(*stage.keys)
            same = [asked[column].eqNullSafe(renamed[key]) for column, key in zip(stage.columns, stage.keys)]
            asked = asked.join(renamed, reduce(lambda left, right: left & right, same), "left_anti")
        answers = ask(asked, stage, self._registration, statistics)
        known.append(answers)
        self.frames.append(answers)
        everything = reduce(DataFrame.unionAll, known)
        self._show(stage.name, everything.select(*stage.columns, VALUE).toDF(*stage.keys, stage.value))

    def _show(self, name: str, frame: DataFrame) -> None:
        frame.createOrReplaceTempView(name)
        self.views.append(name)
