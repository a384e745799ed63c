"""Cutting an ordering into parts of equal work, one for each worker."""

from __future__ import annotations

import numpy as np

from .cells import Cells
from .errors import OptimizerError
from .grouping import Ints
from .ordering import Ordering
from .prefix_tree import prompt_sequences

LEEWAY = 0.05  # of a part, within which the cheapest cut is taken


def cut(cells: Cells, ordering: Ordering, num_parts: int, *, row_units: int = 0) -> Ints:
    """Places at which to cut the shown rows, int64 [num_parts + 1] from 0 to the number of rows.

    Part i is the shown rows from cuts[i] up to cuts[i + 1]. Parts are equal in units that must be computed, not in
    rows: what is computed before a cut is off its share by LEEWAY of a part at most, or by half a row where rows are
    larger. Within that a cut lies where neighbours share little, since what they share is computed on both sides.
    `row_units` are what a row costs beside its cells, such as its answer.
    Raises OptimizerError for less than one part.
    """
    if num_parts < 1:
        raise OptimizerError(f"the number of parts must be at least 1, got {num_parts}")
    shared = shared_with_row_before(cells, ordering)
    work = cells.id_lengths[cells.ids[ordering.rows]].sum(axis=1) - shared + row_units
    done = np.concatenate([[0], np.cumsum(work)])  # before each row
    part = done[-1] / num_parts
    cuts = [0]
    for number in range(1, num_parts):
        goal = number * part
        first, last = np.searchsorted(done, [goal - LEEWAY * part, goal + LEEWAY * part], "left").tolist()
        places = np.arange(first, last) if first < last else np.array([max(first - 1, 0), min(first, cells.num_rows)])
        # within the leeway the cheapest place; where a row is more than that, the nearer one
        losses = np.append(shared, 0)[places] if first < last else np.abs(done[places] - goal)
        cuts.append(max(int(places[losses.argmin()]), cuts[-1]))
    return np.array([*cuts, cells.num_rows], dtype=np.int64)


def computed_units(cells: Cells, ordering: Ordering) -> int:
    """Units of whole cells that are not a prefix of the row before, summed up."""
    return cells.total_length - int(shared_with_row_before(cells, ordering).sum())


def shared_with_row_before(cells: Cells, ordering: Ordering) -> Ints:
    """Units of whole cells that each shown row begins with as the row before it does, int64 [rows]."""
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    equal = np.logical_and.accumulate(sequences[1:] == sequences[:-1], axis=1)
    shared = np.zeros(cells.num_rows, dtype=np.int64)
    shared[1:] = np.where(equal, cells.id_lengths[sequences[1:]], 0).sum(axis=1)
    return shared
