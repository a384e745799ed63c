"""Exact deduplication of rows on their cell codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .cells import Cells, as_cells
from .grouping import first_of_group, group_rows


@dataclass(frozen=True)
class Deduplication:
    """The distinct rows of a table; `first[inverse[i]]` is a row equal to row i."""

    first: npt.NDArray[np.int64]  # [distinct] the first row of each set of equal rows, ascending
    inverse: npt.NDArray[np.int64]  # [rows] the distinct row that each row equals

    @property
    def num_distinct(self) -> int:
        """Number of distinct rows."""
        return len(self.first)


def deduplicate(table: pa.Table | Cells) -> Deduplication:
    """Find rows that are equal in every column; NULL equals NULL, and rows of a table without columns are all equal."""
    inverse = group_rows(as_cells(table).codes)
    return Deduplication(first_of_group(inverse), inverse)
