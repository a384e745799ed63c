"""Counters of the workers' LLM calls, summed up on the driver by a Spark accumulator: each task once.

Spark may run a task again (it failed, its executor was lost, it was slow), and counts all that ended well. So a task's
counters travel under the name of its attempt, and of the attempts at one partition of a stage one counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pyspark import Accumulator, SparkContext, TaskContext
from pyspark.accumulators import AccumulatorParam, _accumulatorRegistry
from pyspark.sql import SparkSession

from llmsql.functions import Call
from llmsql.statistics import MAX_KEPT_FAILURES, QueryStatistics, StageStatistics

IN_PLACE = "in place"  # of a call that runs as a function
KEPT_PARTS = 4096  # of a session's counters; beyond, those of earlier stages are put together


class Attempt(NamedTuple):
    """One attempt at a partition of one of Spark's stages; `number` is unique in the application."""

    stage: int
    partition: int
    number: int

    @classmethod
    def here(cls) -> Attempt:
        """The task that runs in this process."""
        task = TaskContext.get()
        if task is None:  # only a test runs a task's function without a task
            return cls(-1, 0, 0)
        return cls(task.stageId(), task.partitionId(), task.taskAttemptId())


EARLIER = Attempt(-2, 0, 0)
Counters = dict[tuple[Call, Attempt], StageStatistics]


class _CountersParam(AccumulatorParam[Counters]):  # type: ignore[misc]
    """Adds the counters of equal calls in one attempt."""

    def zero(self, value: Counters) -> Counters:
        return {}

    def addInPlace(self, value1: Counters, value2: Counters) -> Counters:
        for key, part in value2.items():
            total = value1.setdefault(key, StageStatistics(call=part.call, place=part.place))
            total.add(part)
            if part.failures:
                _keep_latest_failures(value1)
        if len(value1) > KEPT_PARTS:
            _put_together(value1)
        return value1


def make_counters(context: SparkContext) -> Accumulator[Counters]:
    """An empty accumulator of counters by call, which PySpark keeps for as long as this process lives."""
    return context.accumulator({}, _CountersParam())


@contextmanager
def stage_counters(context: SparkContext) -> Iterator[Accumulator[Counters]]:
    """An empty accumulator for the tasks of one stage; after the block its counts are gone."""
    counters = make_counters(context)
    try:
        yield counters
    finally:
        forget_counters(counters)


def forget_counters(counters: Accumulator[Counters]) -> None:
    """Let what was counted go; what tasks count from now on goes nowhere."""
    _accumulatorRegistry[counters.aid] = _NOBODY


class _Nobody:
    """Hears the tasks that end after their stage, such as copies of slow ones, which PySpark wants to be heard."""

    def __iadd__(self, update: Counters) -> _Nobody:
        return self


_NOBODY: Any = _Nobody()


def count(counters: Accumulator[Counters], call: Call, rows: int, part: StageStatistics) -> None:
    """Add, on a worker, what one evaluation of `rows` rows did. It reaches the driver when the task has succeeded."""
    part.rows, part.distinct = rows, part.asked
    counters.add({(call, Attempt.here()): part})


def read_counters(counters: Accumulator[Counters]) -> QueryStatistics:
    """A copy of the sums, on the driver: a part for each call."""
    return QueryStatistics(stages=list(summed(dict(counters.value)).values()))


def summed(parts: Counters) -> dict[Call, StageStatistics]:
    """The sums by call, with one attempt at each partition: the one that did most."""
    best: dict[tuple[Call, int, int], StageStatistics] = {}
    for (call, attempt), part in list(parts.items()):
        key = (call, attempt.stage, attempt.partition)
        known = best.get(key)
        if known is None or part.asked + part.cached > known.asked + known.cached:
            best[key] = part
    sums: dict[Call, StageStatistics] = {}
    for (call, _, _), part in best.items():
        sums.setdefault(call, StageStatistics(call=part.call, place=part.place)).add(part)
    return sums


def together(parts: Iterable[StageStatistics]) -> StageStatistics:
    """The sum of some counters."""
    total = StageStatistics()
    for part in parts:
        total.add(part)
    return total


def _put_together(parts: Counters) -> None:
    """Leave the attempts of the latest stage, and one part for all before it."""
    latest = max(attempt.stage for _, attempt in parts)
    earlier = {key: part for key, part in parts.items() if key[1].stage != latest}
    for key in earlier:
        del parts[key]
    for call, part in summed(earlier).items():
        parts[call, EARLIER] = part


def _keep_latest_failures(parts: Counters) -> None:
    """Let go of the failed rows of the earliest attempts when there are twice as many as are ever shown."""
    kept = 0
    for part in reversed(parts.values()):
        del part.failures[max(0, 2 * MAX_KEPT_FAILURES - kept) :]
        kept += len(part.failures)


@dataclass(frozen=True)
class _LastQuery:
    """The last query of a session; `before`: what its functions had counted when it began, if it has any in place."""

    statistics: QueryStatistics
    counters: Accumulator[Counters] | None = None
    before: frozenset[tuple[Call, Attempt]] = frozenset()


_last_query: weakref.WeakKeyDictionary[SparkSession, _LastQuery] = weakref.WeakKeyDictionary()


def last_query(spark: SparkSession) -> QueryStatistics:
    """What the last statement or planned DataFrame of a session asked.

    Calls of it that run as functions count as far as Spark has run them, with those of all other queries since then.
    """
    found = _last_query.setdefault(spark, _LastQuery(QueryStatistics()))
    if found.counters is None:
        return found.statistics
    parts = {key: part for key, part in list(found.counters.value.items()) if key not in found.before}
    in_place = summed({key: part for key, part in parts.items() if part.place == IN_PLACE})
    return replace(found.statistics, stages=[*found.statistics.stages, *in_place.values()])


def note_query(
    spark: SparkSession, statistics: QueryStatistics, functions: Accumulator[Counters] | None = None
) -> None:
    """Make these counters those of the session's last query.

    Args:
        spark: the session.
        statistics: of what is planned.
        functions: counters of the session's functions, where the query has calls that run as functions.
    """
    before = frozenset(() if functions is None else functions.value)
    _last_query[spark] = _LastQuery(statistics, functions, before)
