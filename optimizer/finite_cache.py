"""Prefix hits when the cache is finite, and rows that do not fit into it at all."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .cells import Cells
from .errors import OptimizerError
from .grouping import AnyInts, Ints
from .ordering import Ordering
from .prefix_tree import prompt_sequences, walk


@dataclass(frozen=True)
class FiniteCacheHits:
    """What a cache of some capacity finds when the rows come one after the other as they are shown."""

    units_total: int  # of the rows that fit
    units_hit: int  # in whole cells
    rows_too_long: int  # rows that alone exceed the capacity; they are left out


def finite_cache_hits(cells: Cells, ordering: Ordering, capacity: int) -> FiniteCacheHits:
    """Run the rows through a least-recently-used cache that holds `capacity` units of prefixes, in whole cells.

    One row at a time: the longest cached prefix is found, the row is computed, all of its cells become the most
    recently used, the begin of the prefix more so than its end, and the least recently used cells go until the others
    fit. So it is in servers that keep prefixes between requests.

    The engine of this project keeps no such cache. It holds a node of the prefix tree exactly as long as a waiting or
    running request needs it, and starts requests depth-first. For rows in depth-first order both find the same, which
    is what an unbounded cache finds of the rows that fit: all rows of a node come in succession, so only the path of
    the current row is needed again. For rows in another order the engine finds more, as far as it reads ahead.

    Raises OptimizerError for a capacity below one, and when the ordering belongs to a table of another shape.
    """
    shape = (cells.num_rows, cells.num_columns)
    if ordering.fields.shape != shape:
        raise OptimizerError(f"the ordering is for {ordering.fields.shape} rows and columns, the cells have {shape}")
    if capacity < 1:
        raise OptimizerError(f"capacity must be at least 1 {cells.unit[:-1]}, got {capacity}")
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    return simulate(sequences, cells.id_lengths, capacity)


def row_lengths(cells: Cells) -> Ints:
    """Units of each row, int64 [rows]."""
    total = np.zeros(cells.num_rows, dtype=np.int64)
    for column in range(cells.num_columns):
        total += np.append(cells.lengths[column], 0)[cells.codes[:, column]]  # code -1, NULL, takes the last
    return total


def simulate(sequences: AnyInts, lengths: Ints, capacity: int) -> FiniteCacheHits:
    """The same for prompts given as cell ids in order, [rows, cells] with 0 for none, and the length of each id."""
    units = np.zeros(len(sequences), dtype=np.int64)
    for place in range(sequences.shape[1]):
        units += lengths[sequences[:, place]]
    fits = units <= capacity
    sequences, units = sequences[fits], units[fits]
    too_long = int(np.count_nonzero(~fits))
    # at least what each row shares with the one before, at most what an unbounded cache finds
    least, most = _shared_with_row_before(sequences, lengths), _shared_with_any_row(sequences, lengths)
    hits = least if least == most else _least_recently_used(sequences, lengths, units, capacity)
    return FiniteCacheHits(int(units.sum()), hits, too_long)


def _shared_with_row_before(sequences: AnyInts, lengths: Ints) -> int:
    equal = np.ones(max(len(sequences) - 1, 0), dtype=bool)
    total = 0
    for place in range(sequences.shape[1]):
        equal &= sequences[1:, place] == sequences[:-1, place]
        total += int(lengths[sequences[1:, place][equal]].sum())
    return total


def _shared_with_any_row(sequences: AnyInts, lengths: Ints) -> int:
    return sum(int(lengths[sequences[level.rows[~level.starts], level.depth]].sum()) for level in walk(sequences))


def _least_recently_used(sequences: AnyInts, lengths: Ints, units: Ints, capacity: int) -> int:
    nodes = _shared_nodes(sequences)
    cache: OrderedDict[int, int] = OrderedDict()  # length of each node, the least recently used first
    used = hits = 0
    for row in range(len(sequences)):
        path = nodes[row][nodes[row] > 0].tolist()
        path_lengths = lengths[sequences[row, : len(path)]].tolist()
        hits += sum(length for node, length in zip(path, path_lengths) if node in cache)
        # what only this row has is in the cache too, until others push it out
        steps = [*zip(path, path_lengths), (-1 - row, int(units[row]) - sum(path_lengths))]
        for node, length in reversed(steps):  # so that the begin of a prefix outlives its end
            if node not in cache:
                used += length
            cache[node] = length
            cache.move_to_end(node)
        while used > capacity:
            used -= cache.popitem(last=False)[1]
    return hits


def _shared_nodes(sequences: AnyInts) -> Ints:
    """For each row and depth the number of its node, 0 beyond what it shares with other rows; like `sequences`."""
    nodes = np.zeros(sequences.shape, dtype=np.int64)
    num_nodes = 0
    for level in walk(sequences):
        number = np.cumsum(level.starts)
        shared = (np.bincount(number)[number] > 1) & (sequences[level.rows, level.depth] > 0)
        nodes[level.rows[shared], level.depth] = num_nodes + number[shared]
        num_nodes += int(number[-1]) if len(number) else 0
    return nodes
