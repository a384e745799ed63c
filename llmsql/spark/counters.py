"""Counters of the workers' LLM calls, summed up on the driver by a Spark accumulator."""

from __future__ import annotations

from pyspark import Accumulator, SparkContext
from pyspark.accumulators import AccumulatorParam

from llmsql.functions import Call
from llmsql.statistics import QueryStatistics, StageStatistics

Counters = dict[Call, StageStatistics]


class _CountersParam(AccumulatorParam[Counters]):  # type: ignore[misc]
    """Adds the counters of equal calls."""

    def zero(self, value: Counters) -> Counters:
        return {}

    def addInPlace(self, value1: Counters, value2: Counters) -> Counters:
        for call, part in value2.items():
            total = value1.setdefault(call, StageStatistics(call=part.call, place=part.place))
            total.add(part)
        return value1


def make_counters(context: SparkContext) -> Accumulator[Counters]:
    """An empty accumulator of counters by call."""
    return context.accumulator({}, _CountersParam())


def count(counters: Accumulator[Counters], call: Call, rows: int, part: StageStatistics) -> None:
    """Add, on a worker, what one evaluation of `rows` rows did. It reaches the driver when the task has succeeded."""
    part.rows, part.distinct = rows, part.asked
    counters.add({call: part})


def read_counters(counters: Accumulator[Counters]) -> QueryStatistics:
    """A copy of the sums, on the driver."""
    copy = QueryStatistics()
    for stage in list(counters.value.values()):
        own = StageStatistics(call=stage.call, place=stage.place)
        own.add(stage)
        copy.stages.append(own)
    return copy
