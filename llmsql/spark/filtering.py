"""The predicates of a WHERE that ask the model, over DataFrames: which first, for which rows, and how far.

A batch is several jobs of Spark, so there are few: a sample, then all the rest in the order that it shows to be best.
"""

from __future__ import annotations

import logging
from typing import Protocol

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llmsql.filtering import (
    FIRST_POOL,
    FIRST_ROWS,
    POOL_GROWTH,
    SAMPLE,
    SMALLEST_SAMPLE,
    Measured,
    cost_of_one,
    decision,
)
from llmsql.planner import Filters, Stage
from llmsql.planner.plan import ROW_NUMBER
from llmsql.settings import Settings
from llmsql.spark.kept_frames import read_once, without_plan
from llmsql.spark.layout import UNORDERED_TYPES
from llmsql.spark.requirements import is_connect
from llmsql.statistics import QueryStatistics, StageStatistics

GROWTH = 4  # of the batches under a LIMIT

LOG = logging.getLogger(__name__)


class Asker(Protocol):
    """Who runs the stages of a plan."""

    frames: list[DataFrame]

    def run(self, sql: str) -> DataFrame:
        """SQL with the statement's parameters."""

    def show(self, name: str, frame: DataFrame) -> None:
        """Let the plan's SQL read a frame."""

    def ask(self, stage: Stage) -> StageStatistics:
        """Ask a stage about its input as it is now, but for what was asked before."""

    def missing(self, stage: Stage) -> DataFrame:
        """The tuples of the stage's input as it is now that nobody asked about yet."""


class SparkFilterRunner:
    """Runs one `Filters` step. Its order has no say in the result: the final statement keeps all predicates.

    Args:
        step: the predicates and their candidates.
        asker: runs its stages.
        settings, statistics: of the session, and of the statement.
    """

    def __init__(self, step: Filters, asker: Asker, settings: Settings, statistics: QueryStatistics):
        self._step = step
        self._asker = asker
        self._settings = settings
        self._statistics = statistics
        self._filters = [Measured(one) for one in step.filters]
        self._asked: dict[Stage, StageStatistics] = {}
        self._looked_at = 0
        self._frames: list[DataFrame] = []  # that nothing reads after the step

    def run(self) -> None:
        """Ask until every candidate is decided, or enough rows passed."""
        try:
            if self._step.enough is None:
                self._all_candidates()
            else:
                self._enough_rows(self._step.enough)
        finally:
            for frame in self._frames:
                frame.unpersist()
        self._statistics.decisions.append(decision(self._filters, self._step.enough, self._looked_at))
        LOG.debug("filters: %s", self._statistics.decisions[-1])

    def _all_candidates(self) -> None:
        step = self._step
        candidates = self._kept(self._asker.run(step.candidates_sql).toDF(*step.columns, "n"))
        chosen = step.choose and self._settings.deduplicate and len(step.filters) > 1
        total = candidates.count() if chosen else 0
        sample = min(SAMPLE, total // 16)
        if sample >= SMALLEST_SAMPLE:
            # In an order that is random, but the same each time.
            ordered = [F.col(column) for column in step.columns if _has_order(candidates, column)]
            first = self._kept(candidates.orderBy(F.xxhash64(*ordered), *ordered).limit(sample))
            for one in self._filters:
                self._apply(one, first, sample)
        self._batch(candidates, total)

    def _enough_rows(self, enough: int) -> None:
        """Rows in order, in growing batches. Reading goes in growing steps too, each from the start: a source has no
        place to go on from, and what was answered is known."""
        cap = max(FIRST_POOL, 64 * enough) if enough else 0
        while True:
            read = len(self._frames)
            rows = self._asker.run(self._step.candidates_sql).toDF(*self._step.columns).limit(cap)
            # One partition, so the numbers are those of the rows' order.
            rows = self._kept(rows.withColumn(ROW_NUMBER, F.monotonically_increasing_id()))
            total = rows.count()
            start = passed = 0
            size = max(FIRST_ROWS, 2 * enough) if self._settings.deduplicate else max(total, 1)
            while start < max(total, 1) and (passed < enough or start == 0):
                batch = rows.filter((F.col(ROW_NUMBER) >= start) & (F.col(ROW_NUMBER) < start + size))
                passed += self._batch(batch.withColumn("n", F.lit(1).cast("bigint")), min(size, total - start))
                start += size
                wanted = 1.25 * (enough - passed) * start / passed if passed else GROWTH * size
                size = int(min(GROWTH * size, max(FIRST_ROWS, wanted)))
            self._looked_at = min(start, total)
            if passed >= enough or total < cap:
                break
            cap *= POOL_GROWTH
        self._asker.frames.append(self._frames.pop(read))  # the final statement reads it
        self._asker.show(self._step.name, rows)

    def _batch(self, batch: DataFrame, rows: int) -> int:
        """Decide these candidates, each predicate only those that the ones before left; how many passed all."""
        batch = batch.select(*self._step.needed, "n")
        for one in self._order(batch, rows):
            batch, rows = self._apply(one, batch, rows)
        return rows

    def _apply(self, one: Measured, batch: DataFrame, rows: int) -> tuple[DataFrame, int]:
        """Ask one predicate about a batch; the candidates for which it holds, and how many these are."""
        self._asker.show(self._step.batch, batch)
        for stage in one.filter.stages:
            self._asked[stage] = self._asker.ask(stage)
        passing = self._kept(self._asker.run(one.filter.passing_sql))
        passed = passing.count()
        one.seen += rows
        one.passed += passed
        return passing, passed

    def _order(self, batch: DataFrame, rows: int) -> list[Measured]:
        """The predicates by rank for the batch at hand, those of equal rank as they were written."""
        measurable = all(stage in self._asked for one in self._filters for stage in one.filter.stages)
        if len(self._filters) < 2 or not self._step.choose or not measurable or rows == 0:
            return self._filters
        self._asker.show(self._step.batch, batch)
        for one in self._filters:
            one.cost = sum(self._cost(stage) for stage in one.filter.stages) / rows
        return sorted(self._filters, key=lambda one: one.rank)

    def _cost(self, stage: Stage) -> float:
        """What asking the rest of a stage's tuples costs."""
        missing = self._asker.missing(stage)
        lengths = [F.coalesce(F.length(F.col(column).cast("string")), F.lit(0)) for column in stage.columns]
        total = sum(lengths[1:], lengths[0])
        count, length = missing.agg(F.count(F.lit(1)), F.avg(total)).collect()[0]
        return int(count) * cost_of_one(stage, self._asked[stage], self._settings, lambda: float(length or 0))

    def _kept(self, frame: DataFrame) -> DataFrame:
        over_connect = is_connect(frame.sparkSession)  # where a frame is SQL about views until it is read
        kept = read_once(frame) if over_connect else frame.persist(StorageLevel.MEMORY_AND_DISK)
        self._frames.append(kept)
        return without_plan(kept)


def _has_order(frame: DataFrame, column: str) -> bool:
    kind = frame.schema[column].dataType.simpleString()
    return not any(unordered in kind for unordered in UNORDERED_TYPES)
