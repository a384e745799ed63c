"""Functional dependencies between columns, found exactly on the codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .errors import OptimizerError

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


def given_dependencies(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.bool_]:
    """Dependencies known beforehand, and what follows from them, as `find_dependencies` gives them.

    A pair (a, b) says that column a determines column b, as a key does. Nothing is checked against the data.
    Raises OptimizerError for a name that is not among the columns.
    """
    known = np.eye(len(names), dtype=bool)
    for pair in pairs:
        if len(pair) != 2 or any(name not in names for name in pair):
            raise OptimizerError(f"dependency {pair!r} is not a pair of columns; columns are {', '.join(names)}")
        known[list(names).index(pair[0]), list(names).index(pair[1])] = True
    for middle in range(len(names)):  # chains: what determines it determines what it determines
        known |= np.outer(known[:, middle], known[middle])
    return known


def equivalent_columns(dependencies: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each column the first of those that determine it and that it determines, int64 [columns]."""
    mutual = dependencies & dependencies.T
    return np.array([np.flatnonzero(row)[0] for row in mutual], dtype=np.int64)


def equivalent_names(cells: Cells, dependencies: npt.NDArray[np.bool_]) -> tuple[tuple[str, ...], ...]:
    """The groups of two or more columns that determine each other, by name, but not keys that differ in every row."""
    first = equivalent_columns(dependencies)
    groups = [np.flatnonzero(first == column).tolist() for column in np.unique(first)]
    repeated = [group for group in groups if len(group) > 1 and len(cells.texts[group[0]]) < cells.num_rows]
    return tuple(tuple(cells.names[column] for column in group) for group in repeated)


def _representatives(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], int]:
    """For each row some row with the same code, and the number of distinct codes."""
    row_of_code = np.full(int(codes.max()) + 2, -1, dtype=np.int64)  # the last entry stands for code -1
    row_of_code[codes] = np.arange(len(codes))
    return row_of_code[codes], int(np.count_nonzero(row_of_code >= 0))
