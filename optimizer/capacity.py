"""Reordering for a cache of known capacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from .cells import Cells, as_cells
from .errors import OptimizerError
from .finite_cache import row_lengths, simulate
from .fixed import given_fields
from .grouping import Ints
from .ordering import Ordering, OrderingStats
from .prefix_tree import prompt_sequences

SIMULATED_ROWS = 100_000  # of larger tables "none" is not counted for comparison, as that is done row by row


def reorder_within(
    capacity: int, table: pa.Table | Cells, reorder: Callable[[pa.Table | Cells], Ordering], *, keep_rows: bool
) -> Ordering:
    """The ordering for a cache of `capacity` units of the cells; `reorder` orders a table for an unbounded one.

    Rows that exceed the capacity by themselves come last and are not counted, so they have no say in the order of the
    others. These come depth-first, where only the path of one row must be kept: what an unbounded cache finds of them,
    one that holds the longest of them finds too. With `keep_rows` the rows stay as they are, and the cache is run
    through row by row, see `finite_cache_hits`; so it is for the figures of "none".
    Raises OptimizerError for a capacity below one.
    """
    cells = as_cells(table)
    if capacity < 1:
        raise OptimizerError(f"capacity must be at least 1 {cells.unit[:-1]}, got {capacity}")
    fits = row_lengths(cells) <= capacity
    short, long = np.flatnonzero(fits), np.flatnonzero(~fits)
    if keep_rows or not len(long):
        ordering = reorder(table)
    else:
        ordering = _joined(reorder(_select(table, short)), short, reorder(_select(table, long)), long)
    stats = replace(ordering.stats, capacity=capacity, rows_too_long=len(long))
    if keep_rows or cells.num_rows <= SIMULATED_ROWS:
        found = simulate(prompt_sequences(cells, given_fields(cells)), cells.id_lengths, capacity)
        stats = replace(stats, candidates={**stats.candidates, "none": found.units_hit})
        if keep_rows:
            stats = replace(stats, units=found.units_total, hit_units=found.units_hit, partial_units=0)
    else:
        stats = replace(stats, candidates={name: hits for name, hits in stats.candidates.items() if name != "none"})
    return replace(ordering, stats=stats)


def _select(table: pa.Table | Cells, rows: Ints) -> pa.Table | Cells:
    return table.select_rows(rows) if isinstance(table, Cells) else table.take(pa.array(rows))


def _joined(first: Ordering, first_rows: Ints, second: Ordering, second_rows: Ints) -> Ordering:
    """The rows of the second ordering after those of the first, whose figures count; rows are those of one table."""
    items = {}
    for name in first.items:
        parts = [first.items[name], second.items[name]]
        width = max(part.shape[1] for part in parts)
        # positions beyond the end of a list are not looked at
        items[name] = np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])
    return Ordering(
        np.concatenate([first_rows[first.rows], second_rows[second.rows]]),
        np.concatenate([first.fields, second.fields]),
        _with_rows(first.stats, second.stats),
        items,
    )


def _with_rows(stats: OrderingStats, other: OrderingStats) -> OrderingStats:
    return replace(
        stats, num_rows=stats.num_rows + other.num_rows, num_distinct=stats.num_distinct + other.num_distinct
    )
