"""Spark Connect: the same calls where only the public API of DataFrames exists, on a server that may be elsewhere.

There are no accumulators, so nothing is counted on the client, and no look into plans, so what is asked is
checkpointed on the server; it goes there with the last DataFrame built on it.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

from llmsql.answers import arrow_type
from llmsql.planner.plan import Stage
from llmsql.spark.layout import lay_out, sizes
from llmsql.spark.registration import Registration
from llmsql.spark.reports import Allowance
from llmsql.spark.running import task_errors
from llmsql.spark.stage_function import COUNT, VALUE, StageFunction, map_function


def ask_over_connect(asked: DataFrame, stage: Stage, registration: Registration) -> DataFrame:
    """As `asking.ask`; each task keeps to the budget by itself.

    Raises:
        RowError: a row failed and `on_error` is 'fail'; ModelError: the model cannot be loaded or run.
    """
    value = StructField(VALUE, from_arrow_type(arrow_type(stage.call), prefer_timestamp_ntz=True))
    asked = asked.select(*stage.columns, COUNT).localCheckpoint()
    schema = StructType([*(asked.schema[column] for column in stage.columns), value])
    found = sizes(asked, stage)
    if not found.distinct:
        return asked.sparkSession.createDataFrame([], schema)
    settings = registration.settings
    layout = lay_out(asked, stage, found, settings, _slots(asked.sparkSession))
    work = StageFunction(stage, registration.model, settings, (), Allowance.of(settings, None))
    try:
        with task_errors(stage.call_sql):
            return layout.apply(asked).mapInArrow(map_function(work), schema).localCheckpoint()
    finally:
        layout.unpersist()


def _slots(spark: SparkSession) -> int:
    """Tasks that run at a time, as far as Spark's own default tells."""
    parts = spark.range(10_000).select(F.spark_partition_id().alias("part")).agg(F.max("part")).collect()
    return int(parts[0][0]) + 1
