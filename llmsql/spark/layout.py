"""Where the argument tuples of a stage go: which partition, and in which order, so that prompts share prefixes.

The column order is learned on a sample. Partitions are ranges of the tuples in that order, so rows that begin alike
meet in one; a value that dominates a column is cut by the next columns, and at last by a hash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llmsql.estimate import CHARACTERS_PER_TOKEN, OUTPUT_TOKEN
from llmsql.optimizer import OptimizerError, reorder
from llmsql.planner.plan import Stage
from llmsql.settings import Settings
from llmsql.spark.stage_function import COUNT

SAMPLE_ROWS = 1000
KEY_CHARACTERS = 64  # of a text, by which tuples are compared for the ranges
PARTITION_TOKENS = 100_000  # predicted cost of a partition, in computed prompt tokens
SMALLEST_PARTITION = 16  # rows, below which a partition is not cut to keep more slots busy
UNORDERED_TYPES = ("map<", "variant", "interval")


@dataclass(frozen=True)
class Sizes:
    """Of the input of a stage: distinct tuples, rows behind them, characters in the tuples."""

    distinct: int
    rows: int
    characters: int


@dataclass(frozen=True)
class Layout:
    """How the tuples are cut and ordered: columns, the leading one first, and the number of partitions."""

    order: tuple[str, ...]
    partitions: int

    def apply(self, asked: DataFrame) -> DataFrame:
        """The tuples in their partitions, each in order."""
        keys = [_key(asked, column) for column in self.order]
        if not keys:
            return asked.repartition(self.partitions)
        if self.partitions == 1:
            return asked.repartition(1).sortWithinPartitions(*keys)
        keys.append(F.xxhash64(*[F.col(column) for column in self.order]))
        return asked.repartitionByRange(self.partitions, *keys).sortWithinPartitions(*keys)


def sizes(asked: DataFrame, stage: Stage) -> Sizes:
    """One pass over the input of a stage."""
    length = F.lit(0).cast("bigint")
    for column in stage.columns:
        length += F.coalesce(F.length(F.col(column).cast("string")), F.lit(0))
    found = asked.agg(F.count(F.lit(1)), F.sum(COUNT), F.sum(length)).collect()[0]
    return Sizes(*(int(value or 0) for value in found))


def lay_out(asked: DataFrame, stage: Stage, found: Sizes, settings: Settings, slots: int) -> Layout:
    """The layout of the input of a stage, from a bounded sample of it."""
    orderable = [column for column in stage.columns if _has_order(asked, column)]
    order, computed = tuple(orderable), 1.0
    if settings.reorder and stage.call.reorder and orderable:
        columns = [F.col(column) for column in orderable]
        sample = asked.select(*columns).orderBy(F.xxhash64(*columns)).limit(SAMPLE_ROWS).toArrow()
        led = 1 if stage.has_prompt_column and orderable[0] == stage.columns[0] else 0
        learned, computed = column_order(sample.select(orderable[led:]))
        order = (*orderable[:led], *learned)
    elif not settings.reorder or not stage.call.reorder:
        order = ()
    output = OUTPUT_TOKEN * stage.call.output_tokens(settings.max_output_tokens)
    tokens = found.characters * computed / CHARACTERS_PER_TOKEN + found.distinct * output
    busy = min(slots, math.ceil(found.distinct / SMALLEST_PARTITION))
    return Layout(order, max(1, busy, min(math.ceil(tokens / PARTITION_TOKENS), found.distinct)))


def column_order(sample: pa.Table) -> tuple[tuple[str, ...], float]:
    """The columns by their mean place in the prompts of a sample, and the share of its units to be computed."""
    names = tuple(sample.column_names)
    if sample.num_rows < 2 or not names:
        return names, 1.0
    try:
        ordering = reorder(sample)
    except OptimizerError:  # a type that it does not know
        return names, 1.0
    places = np.argsort(np.asarray(ordering.fields), axis=1).mean(axis=0)
    return tuple(names[column] for column in np.argsort(places, kind="stable")), 1 - ordering.stats.hit_rate


def _key(asked: DataFrame, column: str) -> Column:
    if asked.schema[column].dataType.simpleString() == "string":
        return F.substring(F.col(column), 1, KEY_CHARACTERS)
    return F.col(column)


def _has_order(asked: DataFrame, column: str) -> bool:
    kind = asked.schema[column].dataType.simpleString()
    return not any(unordered in kind for unordered in UNORDERED_TYPES)
