"""Functional dependencies between columns, found exactly on the codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells

SAMPLE = 512


def find_dependencies(cells: Cells) -> npt.NDArray[np.bool_]:
    """All exact dependencies of one column on one other, bool [columns, columns]: [a, b] says that a determines b.

    NULL counts as a value. Every column determines itself, and a column without repetitions determines all.
    """
    codes = cells.codes
    found = np.ones((cells.num_columns, cells.num_columns), dtype=bool)
    sample = codes[:SAMPLE]
    for column in range(cells.num_columns if cells.num_rows else 0):
        representative, num_values = _representatives(codes[:, column])
        if num_values == cells.num_rows:
            continue
        # most columns are ruled out on a few rows
        found[column] = (codes[representative[:SAMPLE]] == sample).all(axis=0)
        for other in np.flatnonzero(found[column]):
            found[column, other] = np.array_equal(codes[representative, other], codes[:, other])
    return found


def _representatives(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], int]:
    """For each row some row with the same code, and the number of distinct codes."""
    row_of_code = np.full(int(codes.max()) + 2, -1, dtype=np.int64)  # the last entry stands for code -1
    row_of_code[codes] = np.arange(len(codes))
    return row_of_code[codes], int(np.count_nonzero(row_of_code >= 0))
