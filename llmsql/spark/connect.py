"""Spark Connect: a stage where only the public API of DataFrames exists, on a server that may be elsewhere.

There are no accumulators, so what tasks count comes back beside the answers, and no look into plans, so what is asked
is checkpointed on the server; it goes there with the last DataFrame built on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from llmsql.planner.plan import Stage
from llmsql.spark.counters import Attempt, Counters
from llmsql.spark.kept_frames import read_once
from llmsql.spark.layout import lay_out, sizes
from llmsql.spark.registration import Registration
from llmsql.spark.running import Running, task_errors
from llmsql.spark.stage_function import StageFunction
from llmsql.statistics import RowFailure, StageStatistics

COUNTED = "counted"


def ask_over_connect(
    asked: DataFrame,
    stage: Stage,
    schema: StructType,
    registration: Registration,
    statistics: StageStatistics,
    running: Running,
    function: type[StageFunction],
) -> DataFrame:
    """As `asking.ask`, which tells the `schema` of what is returned; each task keeps to the budget by itself."""
    tuples = read_once(asked)
    found = sizes(tuples, stage)
    statistics.rows += found.rows
    statistics.distinct += found.distinct
    if not found.distinct:
        return asked.sparkSession.createDataFrame([], schema)
    settings = registration.settings
    with task_errors(stage.call_sql):
        layout = lay_out(tuples, stage, found, settings, _slots(asked.sparkSession))
    work = function(stage, registration.model, settings, (), running.allowance)
    wider = StructType([*schema.fields, StructField(COUNTED, StringType())])
    total = found.distinct if settings.deduplicate else found.rows
    try:
        with running.asking(stage.call_sql, stage.name, total, statistics) as live:
            answers = read_once(layout.apply(tuples).mapInArrow(_counting(work), wider))
            told = answers.select(COUNTED).filter(F.col(COUNTED).isNotNull()).collect()
            parts = [part for (text,) in told for part in _read(text, stage)]
            live.counters = {(stage.call, Attempt(0, number, number)): part for number, part in enumerate(parts)}
    finally:
        layout.unpersist()
    running.budget.rows += sum(part.asked for part in parts)
    running.budget.tokens += sum(part.computed_tokens + part.output_tokens for part in parts)
    return answers.select(*schema.names)


class _Counted:
    """What a task has counted, as an accumulator takes it."""

    def __init__(self) -> None:
        self.parts: list[StageStatistics] = []

    def add(self, counters: Counters) -> None:
        """See `Accumulator.add`."""
        self.parts += counters.values()


def _counting(work: StageFunction) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The work in the form that `mapInArrow` takes, with a column more: in a batch's first row, what was counted."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counted = _Counted()
        for batch in replace(work, counters=(counted,)).batches(batches):
            parts, counted.parts = counted.parts, []
            told = pa.array([_written(parts), *[None] * (batch.num_rows - 1)], pa.string())
            yield pa.RecordBatch.from_arrays([*batch.columns, told], [*batch.schema.names, COUNTED])

    return run


def _written(parts: list[StageStatistics]) -> str:
    return json.dumps(
        [
            {
                "counted": {name: value for name, value in vars(part).items() if isinstance(value, (int, float))},
                "failures": [(failure.values, failure.error) for failure in part.failures],
            }
            for part in parts
        ],
        default=str,
    )


def _read(text: str, stage: Stage) -> Iterator[StageStatistics]:
    for told in json.loads(text):
        failures = [RowFailure(stage.call_sql, values, error) for values, error in told["failures"]]
        yield StageStatistics(stage.call_sql, stage.place, failures=failures, **told["counted"])


def _slots(spark: SparkSession) -> int:
    """Tasks that run at a time, as far as Spark's own default tells."""
    parts = spark.range(10_000).select(F.spark_partition_id().alias("part")).agg(F.max("part")).collect()
    return int(parts[0][0]) + 1
