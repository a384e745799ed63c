"""Prefix hits when the cache is finite, and rows that do not fit into it at all."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .cells import Cells
from .errors import OptimizerError
from .grouping import Ints
from .ordering import Ordering
from .prefix_tree import prompt_sequences, walk


@dataclass(frozen=True)
class FiniteCacheHits:
    """What a cache of some capacity finds when the rows come one after the other as they are shown."""

    units_total: int  # of the rows that fit
    units_hit: int
    rows_too_long: int  # rows that alone exceed the capacity; they are left out


def finite_cache_hits(cells: Cells, ordering: Ordering, capacity: int) -> FiniteCacheHits:
    """Run the rows through a cache of `capacity` units that drops the least recently used end of a prefix first.

    In depth-first order this finds what an unbounded cache finds, for all rows that fit: only the path of one row
    must be kept. Raises OptimizerError for a capacity below one.
    """
    if capacity < 1:
        raise OptimizerError(f"capacity must be at least 1 {cells.unit[:-1]}, got {capacity}")
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    lengths = cells.id_lengths[sequences]
    row_lengths = lengths.sum(axis=1)
    fits = row_lengths <= capacity
    nodes = _shared_nodes(sequences)
    cache: OrderedDict[int, int] = OrderedDict()  # length of each node, the least recently used first
    used = hits = 0
    for row in np.flatnonzero(fits).tolist():
        path = nodes[row][nodes[row] > 0].tolist()
        path_lengths = lengths[row][: len(path)].tolist()
        hits += sum(length for node, length in zip(path, path_lengths) if node in cache)
        # what only this row has is in the cache too, until others push it out
        steps = [*zip(path, path_lengths), (-1 - row, int(row_lengths[row]) - sum(path_lengths))]
        for node, length in reversed(steps):  # so that the begin of a prefix outlives its end
            if node not in cache:
                used += length
            cache[node] = length
            cache.move_to_end(node)
        while used > capacity:
            used -= cache.popitem(last=False)[1]
    return FiniteCacheHits(int(row_lengths[fits].sum()), hits, int(np.count_nonzero(~fits)))


def _shared_nodes(sequences: Ints) -> Ints:
    """For each row and depth the number of its node, 0 beyond what it shares with other rows; like `sequences`."""
    nodes = np.zeros(sequences.shape, dtype=np.int64)
    num_nodes = 0
    for level in walk(sequences):
        number = np.cumsum(level.starts)
        shared = (np.bincount(number)[number] > 1) & (sequences[level.rows, level.depth] > 0)
        nodes[level.rows[shared], level.depth] = num_nodes + number[shared]
        num_nodes += int(number[-1]) if len(number) else 0
    return nodes
