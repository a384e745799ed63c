"""A stage of a plan over DataFrames: its distinct argument tuples are asked once, and the answers are kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

from llmsql import errors
from llmsql.answers import arrow_type
from llmsql.planner.plan import Stage
from llmsql.spark.counters import make_counters, read_counters
from llmsql.spark.layout import lay_out, sizes
from llmsql.spark.model_files import portable_name
from llmsql.spark.registration import Registration
from llmsql.spark.stage_function import COUNT, VALUE, StageFunction, map_function
from llmsql.statistics import StageStatistics

RECURSION = "UnionLoop"  # in a plan
WORKER_ERROR = re.compile(r"llmsql\.errors\.(\w+): (.*)")

LOG = logging.getLogger(__name__)


def ask(asked: DataFrame, stage: Stage, registration: Registration, statistics: StageStatistics) -> DataFrame:
    """Answer a stage for every tuple of `asked`; the model has run when this returns.

    Args:
        asked: distinct tuples with the stage's `columns`, and the number `n` of rows behind each.
        stage: what to ask.
        registration: the model and the settings.
        statistics: counters to add to.

    Returns:
        The same columns and `value`, persisted in memory and on disk: to be unpersisted by the caller.

    Raises:
        RowError: a row failed and `on_error` is 'fail'; ModelError: the model cannot be loaded or run.
    """
    if stage.call.model is not None and registration.settings.address is None:
        stage = replace(stage, call=replace(stage.call, model=portable_name(stage.call.model)))
    value = StructField(VALUE, from_arrow_type(arrow_type(stage.call), prefer_timestamp_ntz=True))
    schema = StructType([*(asked.schema[column] for column in stage.columns), value])
    asked = asked.select(*stage.columns, COUNT)
    if RECURSION in asked._jdf.queryExecution().analyzed().toString():
        # Spark would not know such a plan again, nor what is persisted behind it.
        asked = asked.localCheckpoint(True, StorageLevel.MEMORY_AND_DISK)
    asked = asked.persist(StorageLevel.MEMORY_AND_DISK)
    counters = make_counters(registration.context)
    try:
        with worker_errors():
            found = sizes(asked, stage)
            statistics.rows += found.rows
            statistics.distinct += found.distinct
            if not found.distinct:
                return asked.sparkSession.createDataFrame([], schema)
            slots = registration.context.defaultParallelism
            layout = lay_out(asked, stage, found, registration.settings, slots)
            LOG.info(
                "stage %s: %d rows, %d distinct, %d characters; %d partitions by %s",
                *(stage.call_sql, found.rows, found.distinct, found.characters),
                *(layout.partitions, "chance" if layout.places is None else "what they share"),
            )
            all_counters = (counters, registration.counters)
            function = StageFunction(stage, registration.model, registration.settings, all_counters)
            answers = layout.apply(asked).mapInArrow(map_function(function), schema)
            answers = answers.persist(StorageLevel.MEMORY_AND_DISK)
            try:
                answers.count()
            except BaseException:
                answers.unpersist()
                raise
            finally:
                layout.unpersist()
            return answers
    finally:
        asked.unpersist()
        for part in read_counters(counters).stages:
            part.rows = part.distinct = 0  # known already
            statistics.add(part)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Errors that our code raised on a worker become the same errors here."""
    try:
        yield
    except PySparkException as problem:
        found = WORKER_ERROR.findall(str(problem))
        kind = getattr(errors, found[-1][0], None) if found else None
        if not (isinstance(kind, type) and issubclass(kind, errors.LlmsqlError)):
            raise
        raise kind(found[-1][1]) from problem
