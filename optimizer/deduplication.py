"""Exact deduplication of rows on their cell codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .cells import Cells, as_cells
from .grouping import Indices, first_equal


@dataclass(frozen=True)
class Deduplication:
    """The distinct rows of a table; `first[inverse[i]]` is a row equal to row i."""

    first: npt.NDArray[np.int64]  # [distinct] the first row of each set of equal rows, ascending
    inverse: npt.NDArray[np.int32]  # [rows] the distinct row that each row equals

    @property
    def num_distinct(self) -> int:
        """Number of distinct rows."""
        return len(self.first)


def deduplicate(table: pa.Table | Cells) -> Deduplication:
    """Find rows that are equal in every column; NULL equals NULL, and rows of a table without columns are all equal."""
    cells = as_cells(table)
    first_rows = np.arange(cells.num_rows, dtype=np.int32)
    rows, firsts = _equal_rows(cells)
    first_rows[rows] = firsts
    is_first = first_rows == np.arange(cells.num_rows, dtype=np.int32)
    number = np.cumsum(is_first, dtype=np.int32) - 1
    return Deduplication(np.flatnonzero(is_first), number[first_rows])


def _equal_rows(cells: Cells) -> tuple[Indices, Indices]:
    """Rows that some other row equals, and for each the first that it equals.

    Columns of many values come first, as most rows differ from all others after one or two of them.
    """
    rows = np.arange(cells.num_rows, dtype=np.int32)
    groups, num_groups = np.zeros(cells.num_rows, dtype=np.int32), 1
    for column in sorted(range(cells.num_columns), key=lambda column: -len(cells.lengths[column])):
        size = len(cells.lengths[column]) + 1
        codes = cells.codes[:, column] if len(rows) == cells.num_rows else cells.codes[rows, column]
        first = first_equal(groups * np.int64(size) + codes + 1, num_groups * size)
        repeated = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
        # named by the place of their first row among those that are left
        place = np.cumsum(np.bincount(repeated, minlength=len(first)), dtype=np.int32) - 1
        rows, groups = rows[repeated], place[first[repeated]]
        num_groups = len(rows)
        if not len(rows):
            break
    return rows, rows[groups] if cells.num_columns else np.zeros(len(rows), dtype=np.int32)
