"""A stage of a plan over DataFrames: its distinct argument tuples are asked once, and the answers are kept."""

from __future__ import annotations

import logging
from dataclasses import replace

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import BooleanType, StructField, StructType

from llmsql.answers import arrow_type
from llmsql.planner.plan import Stage
from llmsql.spark.connect import ask_over_connect
from llmsql.spark.counters import stage_counters, summed
from llmsql.spark.kept_frames import dear_rows, read_once, without_plan
from llmsql.spark.known_answers import KNOWN, KnownAnswers, look_up_function, may_be_known
from llmsql.spark.layout import Sizes, lay_out, sizes
from llmsql.spark.registration import Registration
from llmsql.spark.requirements import is_connect
from llmsql.spark.running import Running, task_errors
from llmsql.spark.stage_function import COUNT, VALUE, StageFunction, map_function
from llmsql.statistics import StageStatistics

RECURSION = "UnionLoop"  # in a plan

LOG = logging.getLogger(__name__)


def ask(
    asked: DataFrame,
    stage: Stage,
    registration: Registration,
    statistics: StageStatistics,
    running: Running,
    frames: list[DataFrame],
    *,
    function: type[StageFunction] = StageFunction,
) -> DataFrame:
    """Answer a stage for every tuple of `asked`; the model has run when this returns.

    Args:
        asked: distinct tuples with the stage's `columns`, and the number `n` of rows behind each.
        stage: what to ask.
        registration: the model and the settings.
        statistics: counters to add to.
        running: the statement that asks.
        frames: what is persisted behind the answers is added here, to be unpersisted by the caller, also after errors.
        function: what asks on the workers.

    Returns:
        The same columns and `value`.

    Raises:
        RowError: a row failed and `on_error` is 'fail'; ModelError: the model cannot be loaded or run; BudgetError.
    """
    stage = replace(stage, call=registration.named(stage.call))
    value = StructField(VALUE, from_arrow_type(arrow_type(stage.call), prefer_timestamp_ntz=True))
    schema = StructType([*(asked.schema[column] for column in stage.columns), value])
    asked = asked.select(*stage.columns, COUNT)
    if is_connect(asked.sparkSession):
        return ask_over_connect(asked, stage, schema, registration, statistics, running, function)
    if RECURSION in asked._jdf.queryExecution().analyzed().toString():
        # Spark would not know such a plan again, nor what is persisted behind it.
        asked = asked.localCheckpoint(True, StorageLevel.MEMORY_AND_DISK)
    running.check()
    tuples = asked.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        found = sizes(tuples, stage)
        statistics.rows += found.rows
        statistics.distinct += found.distinct
        known: DataFrame | None = None
        left = without_plan(tuples)
        if (
            function is StageFunction
            and found.distinct
            and may_be_known(stage.call, registration.model, registration.settings)
        ):
            known, left = _look_up(left, stage, registration, statistics, schema)
            if known is not None:
                found = sizes(left, stage)
                _check_rows(stage, found, running)
        if not found.distinct:
            return tuples.sparkSession.createDataFrame([], schema) if known is None else known
        answers = _ask_all(left, stage, found, registration, statistics, running, schema, function)
        frames.append(answers)
        answers = without_plan(answers)
        return answers if known is None else answers.unionAll(known)
    finally:
        tuples.unpersist()


def _look_up(
    asked: DataFrame,
    stage: Stage,
    registration: Registration,
    statistics: StageStatistics,
    schema: StructType,
) -> tuple[DataFrame | None, DataFrame]:
    """The tuples whose answers are known, with them, and the others."""
    wider = StructType([*asked.schema.fields, schema[VALUE], StructField(KNOWN, BooleanType())])
    with stage_counters(registration.context) as counters, task_errors(stage.call_sql):
        known = KnownAnswers(stage, registration.model, registration.settings, registration.counters_with(counters))
        look_up = look_up_function(known)
        looked = read_once(asked.mapInArrow(look_up, wider))  # later, more would be known
        number = looked.filter(KNOWN).count()
        cached = sum(part.cached for part in summed(dict(counters.value)).values())
    if not number:
        return None, asked
    statistics.cached += cached
    LOG.info("stage %s: the answers to %d tuples are known", stage.call_sql, number)
    return looked.filter(KNOWN).select(*schema.names), looked.filter(~F.col(KNOWN)).select(*asked.columns)


def _check_rows(stage: Stage, found: Sizes, running: Running) -> None:
    """Before anything is asked, where it is known how much that is.

    Raises:
        BudgetError: it is more than `max_rows`.
    """
    replace(running.budget).take_rows(stage.call, found.distinct)


def _ask_all(
    asked: DataFrame,
    stage: Stage,
    found: Sizes,
    registration: Registration,
    statistics: StageStatistics,
    running: Running,
    schema: StructType,
    function: type[StageFunction],
) -> DataFrame:
    """The answers to all tuples, persisted."""
    model, settings = registration.model, registration.settings
    with task_errors(stage.call_sql):
        layout = lay_out(asked, stage, found, settings, registration.context.defaultParallelism)
    LOG.info(
        "stage %s: %d rows, %d distinct, %d characters; %d partitions by %s",
        *(stage.call_sql, found.rows, found.distinct, found.characters),
        *(layout.partitions, "chance" if layout.places is None else "what they share"),
    )
    total = found.distinct if settings.deduplicate else found.rows
    with stage_counters(registration.context) as counters:
        work = function(stage, model, settings, registration.counters_with(counters), running.allowance)
        answers = layout.apply(asked).mapInArrow(map_function(work), schema).persist(dear_rows(asked.sparkSession))
        try:
            with running.asking(stage.call_sql, stage.name, total, statistics) as live:
                try:
                    answers.count()
                finally:
                    live.counters = dict(counters.value)
            running.check()
        except BaseException:
            answers.unpersist()
            raise
        finally:
            layout.unpersist()
    return answers
