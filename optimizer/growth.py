"""Growing groups of items that share cells, for all nodes of a level at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grouping import Ints, first_of_group, group_keys

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
PATIENCE = 4_000_000  # cells looked at before growing gets less picky
FREE_BITS, BITS_POWER = 3.0, 0.2  # best of a few on the real tables and on independent skewed columns


@dataclass(frozen=True)
class Growth:
    """Nodes that were made below the ones given, and where the items are now."""

    parents: Ints  # [new nodes] the node that each new node was split from; new nodes are numbered on from the old
    ids: Ints  # [new nodes] the cell that the items of each share beyond those of its parent
    nodes: Ints  # [items] the deepest node of each item


@dataclass(frozen=True)
class _Cells:
    """Cells that may still be shared; all arrays are [cells]."""

    items: Ints  # ascending
    columns: Ints
    ids: Ints
    weights: Floats

    def take(self, chosen: Flags) -> _Cells:
        places = np.flatnonzero(chosen)
        return _Cells(self.items[places], self.columns[places], self.ids[places], self.weights[places])


@dataclass(frozen=True)
class _Groups:
    """Equal cells of one node, numbered from 0."""

    of_cell: Ints  # [cells]
    first: Ints  # [groups] first cell of each
    counts: Ints  # [groups]


def grow(ids: Ints, weights: Floats, nodes: Ints, num_nodes: int, *, as_sets: bool = False) -> Growth:
    """Split nodes into groups of items that share a cell, groups into smaller ones, until no cell is shared.

    `ids` and `weights` are [items, columns]; cells of weight 0 take no part. `nodes` [items] is where items start.
    With `as_sets` it does not matter in which column a cell stands; no item may then hold one twice.
    """
    nodes = nodes.copy()
    parents, shared = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    items, columns = np.nonzero((weights > 0) & (np.bincount(ids.ravel()) > 1)[ids])
    cells = _Cells(items, columns * (not as_sets), ids[items, columns], weights[items, columns].astype(np.float64))
    work = 0
    while True:
        cells, groups = _repeated(cells, nodes)
        if not len(cells.items):
            return Growth(np.concatenate(parents), np.concatenate(shared), nodes)
        likes, liked = _likes(cells, groups, _scores(cells, groups, nodes, ids.shape[1]))
        taken = likes >= _enough_likes(groups.counts, work)
        parents.append(nodes[cells.items[groups.first[taken]]])
        shared.append(cells.ids[groups.first[taken]])
        number = num_nodes - 1 + np.cumsum(taken)
        chosen = liked & taken[groups.of_cell]
        nodes[cells.items[chosen]] = number[groups.of_cell[chosen]]
        num_nodes += len(parents[-1])
        work += len(cells.items)
        cells = cells.take(~chosen)


def _repeated(cells: _Cells, nodes: Ints) -> tuple[_Cells, _Groups]:
    """The cells that some other item of the same node has too."""
    size = int(cells.ids.max()) + 1 if len(cells.ids) else 1
    of_cell = group_keys(nodes[cells.items] * size + cells.ids)
    counts = np.bincount(of_cell)
    repeated = counts > 1
    kept = repeated[of_cell]
    of_cell = (np.cumsum(repeated) - 1)[of_cell[kept]]
    return cells.take(kept), _Groups(of_cell, first_of_group(of_cell), counts[repeated])


def _scores(cells: _Cells, groups: _Groups, nodes: Ints, num_columns: int) -> Floats:
    """How good a group is for its items; only groups of one node are compared.

    What the group saves per item and what its column saves in the node are averaged geometrically: that follows whole
    columns where they pay and single heavy values where those do. A group that is a small part of its node leaves
    little to share further inside, so the score falls with the bits it takes, log2(node size / group size).
    """
    weight, counts = cells.weights[groups.first], groups.counts
    node_of_group = nodes[cells.items[groups.first]]
    node_number = (np.cumsum(np.bincount(node_of_group) > 0) - 1)[node_of_group]
    slot = node_number * num_columns + cells.columns[groups.first]
    column_gain = np.bincount(slot, weight * (counts - 1.0))
    node_sizes = np.bincount(nodes[cells.items[_starts(cells.items)]])
    bits = np.log2(node_sizes[node_of_group] / counts)
    scores: Floats = np.sqrt(weight * (counts - 1.0) / counts * column_gain[slot]) / (bits + FREE_BITS) ** BITS_POWER
    return scores


def _starts(items: Ints) -> Ints:
    return np.flatnonzero(np.diff(items, prepend=-1))


def _likes(cells: _Cells, groups: _Groups, scores: Floats) -> tuple[Ints, Flags]:
    """How many items like each group best, and which cells say so; the later group where scores are equal."""
    starts = _starts(cells.items)
    repetitions = np.diff(starts, append=len(cells.items))
    score = scores[groups.of_cell]
    is_best = score == np.repeat(np.maximum.reduceat(score, starts), repetitions)
    liked = np.maximum.reduceat(np.where(is_best, groups.of_cell, -1), starts)
    return np.bincount(liked, minlength=len(scores)), np.repeat(liked, repetitions) == groups.of_cell


def _enough_likes(counts: Ints, work: int) -> Floats:
    """The likes for which a group is made.

    When all its items like it best, making it equals taking the best group again and again, since a group only loses
    by what others take. Large inputs settle for the items that like it, once they are many enough.
    """
    share = 1.0 if work <= PATIENCE else 0.75 if work <= 4 * PATIENCE else 0.5 if work <= 8 * PATIENCE else 0.0
    enough: Floats = np.maximum(np.ceil(share * counts), 2.0)
    return enough
