"""The planned form of the Column functions: each distinct row of a DataFrame is asked once, in one order of all."""

from __future__ import annotations

import re
import time
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llmsql.errors import CallError
from llmsql.failures import warn_of_failures
from llmsql.functions import FUNCTIONS
from llmsql.planner.calls import AGGREGATE
from llmsql.planner.plan import Stage
from llmsql.planner.scratch_names import fresh_name
from llmsql.spark.asking import ask
from llmsql.spark.counters import note_query
from llmsql.spark.kept_frames import kept_frames, read_once, sweep
from llmsql.spark.llm_column import LlmColumn, call_of
from llmsql.spark.requirements import is_connect
from llmsql.spark.running import Running
from llmsql.spark.stage_function import COUNT, VALUE
from llmsql.statistics import QueryStatistics, StageStatistics

BY_ROW = [name for name in sorted(FUNCTIONS) if name != AGGREGATE]
# Of a logical plan: parts that may choose other rows, or other values, each time they run.
UNSTABLE = re.compile(r"\b(Local|Global)?Limit|\bOffset|\bSample\b|\bDeduplicate|\bWindow\b|\bTail\b|first\(|rand")


def with_llm(frame: DataFrame, name: str, column: Column) -> DataFrame:
    """The DataFrame with a column of answers: `frame.withColumn(name, column)`, planned over the whole of `frame`.

    Equal rows are asked once in all, rows that begin alike meet in one partition, and the answers are kept in memory
    and on disk for as long as the result, or a DataFrame built on it, is there: no action, sort or self-join asks
    again. The model has run when this returns; filter and limit `frame` before.

    Args:
        frame: whose rows to ask about.
        name: of the new column; one of that name is replaced.
        column: what `llm(…)`, `llm_filter(…)`, `llm_classify(…)`, `llm_extract(…)` or `llm_score(…)` returned.

    Raises:
        CallError: the column is no such call.
        RowError: a row failed and `on_error` is 'fail'; ModelError: the model cannot be loaded or run.

    Example:
        reviews.transform(with_llm, "topic", llm_classify("Topic of {review}?", ["price", "delivery"]))
    """
    call = call_of(column)
    if call is None:
        raise CallError(
            f"with_llm: column {name!r} must be what {', '.join(BY_ROW)} of llmsql.spark returned itself, not an "
            "expression around it: compute with the new column afterwards (llm_agg is for groupBy(...).agg)"
        )
    answered, value, drop = _answered(frame, call)
    return answered.withColumn(name, F.col(value)).drop(value, *drop)


def where_llm(frame: DataFrame, column: Column) -> DataFrame:
    """The rows for which an LLM predicate is true: `frame.filter(column)`, planned as `with_llm`.

    Raises:
        CallError: the column is no `llm_filter(…)`; else as `with_llm`.

    Example:
        reviews.transform(where_llm, llm_filter("Is {review} positive?"))
    """
    call = call_of(column)
    if call is None or call.call.sql_type != "BOOLEAN":
        raise CallError("where_llm needs what llm_filter of llmsql.spark returned itself, not an expression around it")
    answered, value, drop = _answered(frame, call)
    return answered.filter(F.col(value)).drop(value, *drop)


def _answered(frame: DataFrame, llm: LlmColumn) -> tuple[DataFrame, str, list[str]]:
    """The rows of the frame with their answers: (frame, column of the answers, other columns to drop)."""
    if not hasattr(frame, "isStreaming"):
        raise CallError(f"with_llm, where_llm: the first argument must be a DataFrame, not {type(frame).__name__}")
    if frame.isStreaming:
        raise CallError("with_llm, where_llm: a stream has no end: use the function as a column, or foreachBatch")
    started = time.perf_counter()
    registration = llm.registration
    sweep(frame.sparkSession)
    frames: list[DataFrame] = []
    if is_connect(frame.sparkSession) or not _is_stable(frame):  # over Connect nothing tells
        frame = read_once(frame)
    prefix = fresh_name("answers")
    kinds = frame.select(llm.fields.alias("fields")).schema["fields"].dataType
    members = kinds.names
    for field in kinds.fields:
        if "map<" in field.dataType.simpleString():
            raise CallError(f"field {field.name!r} is a map, which Spark cannot compare: give to_json of it")
    columns = [f"a{number}" for number in range(len(members))]
    stage = Stage(
        name=prefix,
        call=llm.call,
        call_sql=llm.text,
        fields=tuple(members),
        columns=tuple(columns),
        keys=tuple(f"{prefix}_{column}" for column in columns),
        value=f"{prefix}_value",
        input_sql="",
        place="a DataFrame",
    )
    # By number: members of a struct may be called alike.
    arguments = frame.select(llm.fields.alias("fields"))
    arguments = arguments.select(F.inline(F.array("fields"))).toDF(*columns)
    asked = arguments.groupBy(*columns).agg(F.count(F.lit(1)).alias(COUNT))
    statistics = QueryStatistics(stages=[StageStatistics(call=stage.call_sql, place=stage.place)])
    note_query(frame.sparkSession, statistics)
    try:
        with Running(frame.sparkSession, registration.settings, statistics) as running:
            answers = ask(asked, stage, registration, statistics.stages[0], running, frames)
    except BaseException:
        for one in frames:
            one.unpersist()
        raise
    finally:
        statistics.seconds = time.perf_counter() - started
    warn_of_failures(statistics)
    answers = answers.select(
        *[F.col(column).alias(key) for column, key in zip(columns, stage.keys)], F.col(VALUE).alias(stage.value)
    )
    named = frame.withColumn(f"{prefix}_fields", llm.fields)
    same = [
        named[f"{prefix}_fields"].getField(member).eqNullSafe(answers[key]) for member, key in zip(members, stage.keys)
    ]
    joined = named.join(answers, reduce(lambda left, right: left & right, same), "left")
    kept_frames(frame.sparkSession).keep(joined, frames)
    return joined, stage.value, [f"{prefix}_fields", *stage.keys]


def _is_stable(frame: DataFrame) -> bool:
    """Whether the frame has the same rows each time it is computed, as far as its plan tells."""
    plan = frame._jdf.queryExecution().analyzed()
    return bool(plan.deterministic()) and UNSTABLE.search(plan.toString()) is None
