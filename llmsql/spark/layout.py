"""Where the argument tuples of a stage go: which partition, and in which order, so that prompts share prefixes.

A task on a worker sees short digests of the tuples, orders them as one machine would order its table, and cuts that
order into parts of equal predicted cost. Where the digests are too many for one task, the tuples are first cut into
areas: ranges in a column order that is learned on a sample, each of which is planned by a task of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DataType, StructType

from llmsql.estimate import CHARACTERS_PER_TOKEN, OUTPUT_TOKEN
from llmsql.optimizer import OptimizerError, reorder
from llmsql.planner.plan import Stage
from llmsql.prompt import parse_template
from llmsql.settings import Settings
from llmsql.spark.part_planner import AREA, ID, PART, PLACE, PLACES, PartPlanner, plan_function
from llmsql.spark.stage_function import COUNT

PARTITION_TOKENS = 100_000  # predicted cost of a partition, in computed prompt tokens
SMALLEST_PARTITION = 16  # rows, below which a partition is not cut to keep more slots busy
AREA_CELLS, AREA_CHARACTERS = 4_000_000, 64_000_000  # of the digests that one task plans
DIGEST_CHARACTERS = 48  # of a text longer than that, in its digest
CELL_FRAME = len('"": "",\n')
SAMPLE_ROWS = 1000
KEY_CHARACTERS = 64  # of a text, by which tuples are compared for the ranges
UNORDERED_TYPES = ("map<", "variant", "interval")
KEY, NUMBER = "llm_key", "llm_partition"
KEYS_PER_PARTITION = 20  # tried to find one that Spark puts there


@dataclass(frozen=True)
class Sizes:
    """Of the input of a stage: distinct tuples, rows behind them, characters in the tuples."""

    distinct: int
    rows: int
    characters: int


@dataclass(frozen=True)
class Layout:
    """How the tuples are cut into partitions.

    places: for the `row_id` of each tuple a `KEY` that Spark hashes to its partition, and its `PLACE` there; None
    where tuples go anywhere.
    """

    partitions: int
    places: DataFrame | None = None
    kept: tuple[DataFrame, ...] = ()

    def apply(self, asked: DataFrame) -> DataFrame:
        """The tuples in their partitions, each in order."""
        if self.places is None:
            return asked.repartition(self.partitions)
        placed = asked.withColumn(ID, row_id(asked)).join(self.places, ID, "left")
        return placed.repartition(self.partitions, KEY).sortWithinPartitions(PLACE).select(*asked.columns)

    def unpersist(self) -> None:
        """Give back what the plan keeps; what is laid out by it can then only be computed by planning again."""
        for frame in self.kept:
            frame.unpersist()


def sizes(asked: DataFrame, stage: Stage) -> Sizes:
    """One pass over the input of a stage."""
    length = F.lit(0).cast("bigint")
    for column in stage.columns:
        length += F.coalesce(F.length(F.col(column).cast("string")), F.lit(0))
    found = asked.agg(F.count(F.lit(1)), F.sum(COUNT), F.sum(length)).collect()[0]
    return Sizes(*(int(value or 0) for value in found))


def lay_out(
    asked: DataFrame,
    stage: Stage,
    found: Sizes,
    settings: Settings,
    slots: int,
    *,
    area_cells: int = AREA_CELLS,
    partition_tokens: int = PARTITION_TOKENS,
) -> Layout:
    """Plan the parts of the input of a stage, on the workers; to be unpersisted after use.

    Args:
        asked: the distinct tuples, and the number `n` of rows behind each.
        stage: whose input it is.
        found: its sizes.
        settings: `reorder` off leaves the order to chance.
        slots: tasks that run at a time.
        area_cells: planned by one task at most.
        partition_tokens: predicted cost of a partition.
    """
    busy = max(1, min(slots, math.ceil(found.distinct / SMALLEST_PARTITION)))
    # Choices are scored with the prompt, and take no decoding.
    output = 0.0 if stage.call.choices else OUTPUT_TOKEN * stage.call.output_tokens(settings.max_output_tokens)
    tokens = found.characters / CHARACTERS_PER_TOKEN + found.distinct * output  # at most, with nothing shared
    # Of no more rows than a task holds at a time: one that is killed then loses what it held, and no earlier answers.
    rows = math.ceil(found.distinct / settings.batch_rows)
    most = max(busy, rows, min(math.ceil(tokens / partition_tokens), found.distinct))
    if not settings.reorder or most == 1:  # a single task orders its rows by itself
        return Layout(most)
    cells = _cells(asked, stage)
    digests = math.ceil(found.distinct * len(cells))
    areas = max(
        math.ceil(digests / area_cells),
        math.ceil(min(found.characters, digests * DIGEST_CHARACTERS) / AREA_CHARACTERS),
    )
    planner = PartPlanner(
        frames=tuple(len(name) + CELL_FRAME for _, _, name in cells),
        prompted=stage.has_prompt_column,
        method="auto" if stage.call.reorder and not _is_placed(stage) else "sort",
        row_cost=round(output * CHARACTERS_PER_TOKEN),
        part_cost=round(partition_tokens * CHARACTERS_PER_TOKEN),
        least_parts=math.ceil(busy / areas),
        part_rows=settings.batch_rows,
    )
    planned = _digests(asked, stage, cells, areas).mapInArrow(plan_function(planner), PLACES)
    if areas > 1:
        planned = planned.dropDuplicates([ID])  # two rows with one id would be joined twice
    planned = planned.persist(StorageLevel.MEMORY_AND_DISK)
    parts = {row[0]: row[1] + 1 for row in planned.groupBy(AREA).agg(F.max(PART)).collect()}
    before = [0, *accumulate(parts.get(area, 0) for area in range(areas))]
    number = F.element_at(F.array(*[F.lit(count) for count in before]), F.col(AREA) + 1) + F.col(PART)
    keys = F.broadcast(_keys(asked, before[-1]))
    places = planned.withColumn(NUMBER, number).join(keys, NUMBER, "left").select(ID, KEY, PLACE)
    return Layout(before[-1], places, (planned,))


def row_id(asked: DataFrame) -> Column:
    """A hash of a tuple, for a row of `asked`."""
    texts = [F.col(column).cast("string") for column in asked.columns if column != COUNT]
    return F.xxhash64(*texts, *[text.isNull() for text in texts])


def column_order(sample: pa.Table) -> tuple[str, ...]:
    """The columns by their mean place in the prompts of a sample."""
    names = tuple(sample.column_names)
    if sample.num_rows < 2 or not names:
        return names
    try:
        ordering = reorder(sample)
    except OptimizerError:  # a type that it does not know
        return names
    places = np.argsort(np.asarray(ordering.fields), axis=1).mean(axis=0)
    return tuple(names[column] for column in np.argsort(places, kind="stable"))


def arrow_table(frame: DataFrame) -> pa.Table:
    """The rows of a small DataFrame, which has some."""
    if hasattr(frame, "toArrow"):  # from Spark 4
        return frame.toArrow()
    return pa.Table.from_batches(frame._collect_as_arrow())


def _is_placed(stage: Stage) -> bool:
    """Whether the prompt has fields in its text, which then cannot change their places."""
    return stage.call.prompt is not None and parse_template(stage.call.prompt, stage.fields) is not None


def _cells(asked: DataFrame, stage: Stage) -> list[tuple[Column, DataType, str]]:
    """The cells of a prompt as (value, type, name); members of a struct are cells of their own, as in the prompt."""
    names = ["", *stage.fields] if stage.has_prompt_column else list(stage.fields)
    placed = parse_template(stage.call.prompt, stage.fields) if stage.call.prompt is not None else None
    cells: list[tuple[Column, DataType, str]] = []
    for column, name in zip(stage.columns, names):
        kind = asked.schema[column].dataType
        if isinstance(kind, StructType):
            cells += [(F.col(column)[member.name], member.dataType, member.name) for member in kind.fields]
        else:
            cells.append((F.col(column), kind, name))
    if placed is not None:
        rank = {name: number for number, name in reversed(list(enumerate(placed.fields)))}
        cells.sort(key=lambda cell: rank.get(cell[2], len(rank)))
    return cells


def _digests(asked: DataFrame, stage: Stage, cells: list[tuple[Column, DataType, str]], areas: int) -> DataFrame:
    """What `PartPlanner` reads, in so many partitions: ranges, so that tuples which begin alike are in one."""
    columns = [row_id(asked).alias(ID)]
    for number, (cell, kind, _) in enumerate(cells):
        columns += _digest(cell, kind, number)
    if areas == 1:
        return asked.select(*columns).repartition(1)
    order = _order_on_sample(asked, stage)
    keys = [f"s{number}" for number in range(len(order))]
    columns += [_key(asked, column).alias(key) for column, key in zip(order, keys)]
    return asked.select(*columns).repartitionByRange(areas, *keys, ID).drop(*keys)


def _digest(cell: Column, kind: DataType, number: int) -> tuple[Column, Column]:
    """A short text in place of a value, and the value's length."""
    text = F.hex(cell) if isinstance(kind, BinaryType) else cell.cast("string")
    cut_short = F.concat(F.substring(text, 1, DIGEST_CHARACTERS), F.hex(F.xxhash64(text)))
    short = F.when(F.length(text) > DIGEST_CHARACTERS, cut_short).otherwise(text)
    return short.alias(f"k{number}"), F.length(text).alias(f"n{number}")


def _order_on_sample(asked: DataFrame, stage: Stage) -> tuple[str, ...]:
    """The columns that can be sorted by, in the order in which they are shown; a column of prompts leads."""
    orderable = [column for column in stage.columns if _has_order(asked, column)]
    if not orderable:
        return ()
    led = 1 if stage.has_prompt_column and orderable[0] == stage.columns[0] else 0
    sample = asked.select(*orderable).orderBy(F.xxhash64(*orderable)).limit(SAMPLE_ROWS)
    return (*orderable[:led], *column_order(arrow_table(sample).select(orderable[led:])))


def _keys(asked: DataFrame, partitions: int) -> DataFrame:
    """For each partition by `NUMBER` a `KEY` that Spark's hash puts there; one without is put anywhere."""
    tried = asked.sparkSession.range(KEYS_PER_PARTITION * partitions + KEYS_PER_PARTITION)
    number = F.pmod(F.hash("id"), F.lit(partitions)).alias(NUMBER)
    return tried.select(number, "id").groupBy(NUMBER).agg(F.min("id").alias(KEY))


def _key(asked: DataFrame, column: str) -> Column:
    if asked.schema[column].dataType.simpleString() == "string":
        return F.substring(F.col(column), 1, KEY_CHARACTERS)
    return F.col(column)


def _has_order(asked: DataFrame, column: str) -> bool:
    kind = asked.schema[column].dataType.simpleString()
    return not any(unordered in kind for unordered in UNORDERED_TYPES)
