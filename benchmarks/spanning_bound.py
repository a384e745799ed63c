"""How many hits any order of rows and fields can have at most.

A row finds, at most, all cells that it has in common with some one row shown before it: whichever of them ends in the
same node of the prefix tree has that whole path. If each row points to that earlier row, the arrows are a spanning tree
of the rows. So no ordering has more hits than the maximum spanning tree over all pairs of rows, weighted by the length
of the cells that they have in common. Nor can any cell be found where it stands first in the table. The smaller of the
two bounds is returned; both count whole cells. The optimum may be far below it.

The spanning tree is bounded from above, too, to save time: of each row only the NEIGHBOURS nearest are compared one by
one, and all others are taken to be as near as the farthest of these.
"""

from __future__ import annotations

import numpy as np

from llmsql.optimizer import Cells, column_statistics, deduplicate

NEIGHBOURS = 16
BLOCK_CELLS = 4_000_000
DENSE = 1 / 40  # columns whose values are in more of the rows than that are compared row by row


def hit_bound(cells: Cells) -> int:
    """Units in whole cells that an unbounded cache can find at most, copies of whole rows included."""
    first_uses = sum(column.repeated_units for column in column_statistics(cells))
    distinct = cells.select_rows(deduplicate(cells).first)
    copies = units(cells) - units(distinct)
    return min(first_uses, copies + spanning_tree_bound(distinct))


def units(cells: Cells) -> int:
    return int(cells.id_lengths[cells.ids].sum())


def spanning_tree_bound(cells: Cells) -> int:
    rows = cells.num_rows
    if rows < 2:
        return 0
    count = min(NEIGHBOURS, rows - 1)
    others, common = nearest_rows(cells, count)
    farthest = common.min(axis=1) if count < rows - 1 else np.zeros(rows)
    # a pair that is not listed has no more in common than the farthest of either: paths over one row say the same
    left = np.concatenate([np.repeat(np.arange(rows), count), np.arange(rows)])
    right = np.concatenate([others.ravel(), np.full(rows, farthest.argmax())])
    return int(maximum_spanning_tree(left, right, np.concatenate([common.ravel(), farthest]), rows))


def nearest_rows(cells: Cells, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row those that have most in common with it, and the length of that, both [rows, count]."""
    rows = cells.num_rows
    columns = [_Column(cells.codes[:, c], np.append(cells.lengths[c], 0)) for c in range(cells.num_columns)]
    others = np.empty((rows, count), dtype=np.int64)
    lengths = np.empty((rows, count), dtype=np.float64)
    block = max(1, BLOCK_CELLS // rows)
    for start in range(0, rows, block):
        here = slice(start, min(start + block, rows))
        common = np.zeros((here.stop - start, rows), dtype=np.float32)
        for column in columns:
            column.add(common, here)
        common[np.arange(here.stop - start), np.arange(start, here.stop)] = -1  # not the row itself
        others[here] = np.argpartition(common, rows - count, axis=1)[:, rows - count :]
        lengths[here] = np.take_along_axis(common, others[here], axis=1)
    return others, lengths


class _Column:
    """One column, sorted by value where each value is in few rows."""

    def __init__(self, codes: np.ndarray, lengths: np.ndarray):
        self.codes = codes
        self.lengths = lengths[codes].astype(np.float32)  # code -1, NULL, takes the last, which is 0
        self.order = np.argsort(codes, kind="stable")
        ordered = codes[self.order]
        self.starts = np.searchsorted(ordered, codes, "left")
        self.counts = np.where(self.lengths > 0, np.searchsorted(ordered, codes, "right") - self.starts, 0)
        self.dense = self.counts.mean() > DENSE * len(codes)

    def add(self, common: np.ndarray, here: slice) -> None:
        """Add the lengths of equal cells to common [rows here, rows]."""
        if self.dense:
            common += (self.codes[here, None] == self.codes) * self.lengths[here, None]
            return
        counts = self.counts[here]
        row = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        common[row, self.order[self.starts[here][row] + within]] += self.lengths[here][row]


def maximum_spanning_tree(left: np.ndarray, right: np.ndarray, weights: np.ndarray, rows: int) -> float:
    """Kruskal's algorithm."""
    parents = list(range(rows))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    total = 0.0
    for edge in np.argsort(-weights, kind="stable").tolist():
        one, other = root(int(left[edge])), root(int(right[edge]))
        if one != other:
            parents[one] = other
            total += float(weights[edge])
    return total
