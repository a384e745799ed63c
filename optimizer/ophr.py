"""The best field orders there are, for small tables: what the other methods are measured against.

Arxiv 2403.05821 calls its exact method OPHR and recurses over (column, value) pairs. Here the search is over nested
groups of rows, which is exact for an unbounded cache and bounded by 3 to the power of the rows of one component.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .errors import OptimizerError
from .fixed import Fields
from .grouping import Ints

MAX_ROWS = 14  # of rows that hang together; 3**14 pairs of subsets take seconds


def ophr_fields(cells: Cells) -> Fields:
    """Optimal columns in prompt order for each of the distinct rows, int32 [rows, columns].

    Rows that share no cell are solved apart, and cells that all rows of a part share are set aside first.
    Raises OptimizerError when more than MAX_ROWS rows still hang together, as the search is exponential.
    """
    fields = np.full(cells.codes.shape, -1, dtype=np.int32)
    work = [(np.arange(cells.num_rows), 0)] if cells.num_rows else []
    lengths = cells.id_lengths[cells.ids]
    while work:
        rows, depth = work.pop()
        open_columns = _open_columns(fields[rows[0]], cells.num_columns)
        ids = np.where(lengths[rows][:, open_columns] > 0, cells.ids[rows][:, open_columns], 0)
        shared = (ids == ids[0]).all(axis=0) & (ids[0] > 0)
        if len(rows) > 1:
            fields[np.ix_(rows, depth + np.arange(shared.sum()))] = open_columns[shared]
        depth += int(shared.sum()) if len(rows) > 1 else 0
        ids = ids[:, ~shared]
        parts = _components(ids)
        if len(rows) == 1 or not (ids > 0).any():
            continue
        if len(parts) == 1:
            parts = _best_split(ids, lengths[rows][:, open_columns[~shared]])
        work += [(rows[part], depth) for part in parts if len(part) > 1]
    return _completed(fields)


def _open_columns(fields: npt.NDArray[np.int32], num_columns: int) -> Ints:
    return np.setdiff1d(np.arange(num_columns), fields[fields >= 0])


def _completed(fields: Fields) -> Fields:
    """The columns that a row does not have yet, in table order."""
    columns = np.arange(fields.shape[1])
    for row in fields:
        used = row[row >= 0]
        row[len(used) :] = np.setdiff1d(columns, used)
    return fields


def _components(ids: Ints) -> list[Ints]:
    """Rows that hang together by shared cells, as lists of positions."""
    label = np.arange(len(ids))
    while True:
        before = label.copy()
        for column in ids.T:
            for value in np.unique(column[column > 0]):
                holders = column == value
                label[holders] = label[holders].min()
        if np.array_equal(before, label):
            return [np.flatnonzero(label == value) for value in np.unique(label)]


def _best_split(ids: Ints, lengths: Ints) -> list[Ints]:
    """The two halves of the best binary tree over rows that share no cell all together."""
    count = len(ids)
    if count > MAX_ROWS:
        raise OptimizerError(
            f"method 'ophr' tries all groupings of rows that share cells: {count} rows hang together, "
            f"at most {MAX_ROWS} can be searched; take fewer rows or method 'tree'"
        )
    common = _common_lengths(ids, lengths)
    best = np.zeros(2**count, dtype=np.int64)
    split = np.zeros(2**count, dtype=np.int64)
    for subset in range(1, 2**count):
        inner = subset & (subset - 1)  # without the lowest row, which stays in the other half
        if inner == 0:
            continue
        halves = _submasks(inner)
        values = best[halves] + best[subset ^ halves]
        choice = int(values.argmax())
        split[subset] = halves[choice]
        best[subset] = common[subset] + values[choice]
    whole = 2**count - 1
    masks = [int(split[whole]), int(whole ^ split[whole])]
    return [np.flatnonzero((mask >> np.arange(count)) & 1) for mask in masks]


def _submasks(mask: int) -> Ints:
    """All subsets of a bit mask but the empty one."""
    subsets = np.zeros(1, dtype=np.int64)
    while mask:
        lowest = mask & -mask
        subsets = np.concatenate([subsets, subsets | lowest])
        mask ^= lowest
    return subsets[1:]


def _common_lengths(ids: Ints, lengths: Ints) -> Ints:
    """Length of what the rows of each subset share, int64 [2**rows]; 0 for the empty subset."""
    count = len(ids)
    total = np.zeros(2**count, dtype=np.int64)
    masks = np.arange(2**count)
    for column in range(ids.shape[1]):
        for value in np.unique(ids[:, column]):
            holders = int(((ids[:, column] == value) << np.arange(count)).sum())
            if value > 0:
                total[(masks & ~holders) == 0] += lengths[ids[:, column] == value, column][0]
    total[0] = 0
    return total
