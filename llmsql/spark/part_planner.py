"""What a Spark worker runs to plan a stage: digests of the argument tuples in, the part and the place of each out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext

from llmsql.optimizer import Cells, computed_units, cut, encode, reorder

ID, AREA, PART, PLACE = "llm_row", "llm_area", "llm_part", "llm_place"
PLACES = f"{ID} bigint, {AREA} int, {PART} int, {PLACE} bigint"


@dataclass(frozen=True)
class PartPlanner:
    """Orders the tuples of one area (a partition of the digests) and cuts them into parts of equal predicted cost.

    Parts with too many rows are cut again, so that a task that is killed loses what it held at a time, and no more.

    A digest is a row's `id`, then for each cell its key (texts that are equal have equal keys, and similar ones begin
    alike) and the characters of its value; both NULL for NULL. Costs are in characters of prompts that are computed.

    frames: characters around the value in each cell. prompted: the first cell is the prompt, which comes before all
    others. method: of `reorder`. row_cost: of a row beside its prompt, such as its answer. part_cost: of a part.
    least_parts: so many even where they cost less. part_rows: rows of a part at most.
    """

    frames: tuple[int, ...]
    prompted: bool
    method: str
    row_cost: int
    part_cost: int
    least_parts: int
    part_rows: int

    def batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The `PLACES` of the tuples of one partition."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        digests = pa.Table.from_batches(held)
        ids, first = np.unique(digests.column(0).to_numpy(), return_index=True)  # in the same order every time
        rows, parts = self._planned(digests.take(pa.array(first)))
        task = TaskContext.get()
        area = np.full(len(rows), 0 if task is None else task.partitionId(), np.int32)
        arrays = [ids[rows], area, parts.astype(np.int32), np.arange(len(rows))]
        yield pa.RecordBatch.from_arrays([pa.array(array) for array in arrays], [ID, AREA, PART, PLACE])

    def _planned(self, digests: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """The rows in the order in which they are to be shown, and the part of each, [rows]."""
        cells = self._cells(digests)
        ordering = reorder(self._weighted(cells), method=self.method)
        cost = computed_units(cells, ordering) + cells.num_rows * self.row_cost
        num_parts = min(max(math.ceil(cost / self.part_cost), self.least_parts), cells.num_rows)
        cuts = cut(cells, ordering, num_parts, row_units=self.row_cost)
        sizes = np.diff(cuts)
        pieces = -(-sizes // self.part_rows)
        place = np.arange(cells.num_rows) - np.repeat(cuts[:-1], sizes)
        return ordering.rows, np.repeat(np.cumsum(pieces) - pieces, sizes) + place // self.part_rows

    def _cells(self, digests: pa.Table) -> Cells:
        columns = digests.columns[1:]
        names = [f"{number:03}" for number in range(len(self.frames))]
        cells = encode(pa.Table.from_arrays(columns[0::2], names=names))
        lengths = []
        for number, characters in enumerate(columns[1::2]):
            codes, found = cells.codes[:, number], pc.fill_null(characters, 0).to_numpy()
            by_code = np.zeros(len(cells.texts[number]) + 1, np.int64)
            by_code[codes] = found + self.frames[number]  # the last one is for NULL
            lengths.append(by_code[:-1])
        return cells.with_lengths(lengths, "characters")

    def _weighted(self, cells: Cells) -> Cells:
        """The cells, with a prompt that is worth more than all else in a row, so that rows share it first."""
        if not self.prompted:
            return cells
        others = sum(int(lengths.max(initial=0)) for lengths in cells.lengths)
        return cells.with_lengths([cells.lengths[0] + others, *cells.lengths[1:]], "characters")


def plan_function(planner: PartPlanner) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """`planner` in the form that `mapInArrow` takes."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return planner.batches(batches)

    return run
