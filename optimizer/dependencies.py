"""Functional dependencies between columns: found exactly on the codes, or given by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .errors import OptimizerError

Floats = npt.NDArray[np.float64]
Known = npt.NDArray[np.bool_]  # [columns, columns]: [a, b] says that a determines b
Given = tuple[str, "str | Sequence[str]"]
SAMPLE = 512
ALL_COLUMNS = "*"
HARDLY_REPEATS = 0.9  # distinct values per row


@dataclass(frozen=True)
class Dependency:
    """One column determines another; names and what is known of it."""

    determinant: str
    dependent: str
    mutual: bool  # the other way, too; then the methods choose both columns as one
    source: str  # "exact", "approximate" or "given"
    error: float = 0.0  # share of the distinct rows without which it holds (g3); not looked at when given

    def __str__(self) -> str:
        rule = f"{self.determinant} {'=' if self.mutual else '->'} {self.dependent}"
        return f"{rule} ({self.source}{f', but for {self.error:.2%} of the rows' if self.error else ''})"


def find_dependencies(cells: Cells) -> Known:
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


def given_dependencies(names: Sequence[str], given: Sequence[Given]) -> Known:
    """Dependencies known beforehand, and what follows from them, as `find_dependencies` gives them.

    A pair (a, b) says that column a determines column b, (a, [b, c]) that it determines both, and (a, "*") that it
    determines all columns, as a PRIMARY KEY or UNIQUE column of a single table does. A foreign key determines the
    columns of the table that it refers to. Chains and cycles collapse; nothing is checked against the data.
    Raises OptimizerError for what is no such pair, and for a name that is not among the columns.
    """
    errors = 1 - np.eye(len(names))
    for pair in given:
        determinant, dependents = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, ())
        if isinstance(dependents, str):
            dependents = names if dependents == ALL_COLUMNS and ALL_COLUMNS not in names else [dependents]
        if determinant not in names or any(name not in names for name in dependents):
            raise OptimizerError(
                f"dependency {pair!r} is not a pair of columns (a determines b), a column and a list of columns, "
                f"or a column and '*'; columns are {', '.join(names)}"
            )
        for dependent in dependents:
            errors[list(names).index(determinant), list(names).index(dependent)] = 0
    known: Known = chain(errors) == 0
    return known


def chain(errors: Floats) -> Floats:
    """Errors of dependencies with those that follow: where a determines b and b determines c, errors add up."""
    errors = errors.copy()
    for middle in np.flatnonzero((errors < 1).sum(axis=0) > 1):  # others than itself determine it
        np.minimum(errors, errors[:, [middle]] + errors[[middle]], out=errors)
    return errors


def equivalent_columns(dependencies: Known) -> npt.NDArray[np.int64]:
    """For each column the first of those that determine it and that it determines, int64 [columns]."""
    mutual = dependencies & dependencies.T
    return np.array([np.flatnonzero(row)[0] for row in mutual], dtype=np.int64)


def name_dependencies(cells: Cells, known: Known, source: str, errors: Floats | None = None) -> tuple[Dependency, ...]:
    """The dependencies by name, without those that follow from others and those that say nothing.

    Columns that determine each other are named once each, with the first of them, which then stands for all. A column
    that hardly repeats determines all, and one that is constant is determined by all: both are left out.
    """
    first = equivalent_columns(known)
    distinct = np.array([len(texts) for texts in cells.texts]) + (cells.codes < 0).any(axis=0)
    repeats = distinct <= HARDLY_REPEATS * cells.num_rows
    others = np.flatnonzero((first != np.arange(len(first))) & repeats)
    pairs = [(int(first[column]), int(column), True) for column in others]
    heads = np.flatnonzero((first == np.arange(len(first))) & (distinct > 1))
    above = known[np.ix_(heads, heads)] & ~np.eye(len(heads), dtype=bool)
    above &= repeats[heads][:, None]
    direct = above & ~(above.astype(np.float32) @ above.astype(np.float32) > 0)
    pairs += [(int(heads[left]), int(heads[right]), False) for left, right in np.argwhere(direct)]
    return tuple(
        Dependency(cells.names[left], cells.names[right], mutual, source, _error(errors, left, right, mutual))
        for left, right, mutual in pairs
    )


def _error(errors: Floats | None, left: int, right: int, mutual: bool) -> float:
    if errors is None:
        return 0.0
    return float(max(errors[left, right], errors[right, left]) if mutual else errors[left, right])


def _representatives(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], int]:
    """For each row some row with the same code, and the number of distinct codes."""
    row_of_code = np.full(int(codes.max()) + 2, -1, dtype=np.int64)  # the last entry stands for code -1
    row_of_code[codes] = np.arange(len(codes))
    return row_of_code[codes], int(np.count_nonzero(row_of_code >= 0))
