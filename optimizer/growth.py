"""Growing groups of items that share cells, for all nodes of a level at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grouping import Ints, first_of_group, group_keys

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Growth:
    """Nodes that were made below the ones given, and where the items are now."""

    parents: Ints  # [new nodes] the node that each new node was split from; new nodes are numbered on from the old
    nodes: Ints  # [items] the deepest node of each item


@dataclass(frozen=True)
class _Repeats:
    """The cells that some other item of the same node has too."""

    items: Ints  # [cells], ascending
    columns: Ints  # [cells]
    groups: Ints  # [cells] equal cells of one node, numbered from 0
    first: Ints  # [groups] first cell of each
    counts: Ints  # [groups]


def grow(ids: Ints, weights: Floats, nodes: Ints, num_nodes: int) -> Growth:
    """Split nodes into groups of items that share a cell, groups into smaller ones, until no cell is shared.

    `ids` and `weights` are [items, columns]; cells of weight 0 take no part. `nodes` [items] is where items start.
    """
    nodes, parents = nodes.copy(), [np.zeros(0, dtype=np.int64)]
    items, columns = np.nonzero((weights > 0) & (np.bincount(ids.ravel()) > 1)[ids])
    while len(items):
        repeats = _repeated_cells(ids, nodes, items, columns)
        if not len(repeats.items):
            break
        items, columns = repeats.items, repeats.columns
        taken = _undisputed_groups(repeats, _scores(repeats, weights, nodes))
        parents.append(nodes[items[repeats.first[taken]]])
        number = num_nodes - 1 + np.cumsum(taken)
        chosen = taken[repeats.groups]
        nodes[items[chosen]] = number[repeats.groups[chosen]]
        num_nodes += len(parents[-1])
        items, columns = items[~chosen], columns[~chosen]
    return Growth(np.concatenate(parents), nodes)


def _repeated_cells(ids: Ints, nodes: Ints, items: Ints, columns: Ints) -> _Repeats:
    cells = ids[items, columns]
    groups = group_keys(nodes[items] * (int(cells.max()) + 1) + cells)
    counts = np.bincount(groups)
    repeated = counts[groups] > 1
    groups = (np.cumsum(counts > 1) - 1)[groups[repeated]]
    return _Repeats(items[repeated], columns[repeated], groups, first_of_group(groups), counts[counts > 1])


def _scores(repeats: _Repeats, weights: Floats, nodes: Ints) -> Floats:
    """How much a group is worth to each of its items: what the group saves, and what its column saves in the node.

    The geometric mean of the two follows whole columns where they pay and single heavy values where those do.
    """
    num_columns = weights.shape[1]
    weight = weights[repeats.items, repeats.columns]
    group_weight, counts = weight[repeats.first], repeats.counts
    node_of_cell, num_nodes = _dense(nodes[repeats.items])
    slots = node_of_cell * num_columns + repeats.columns
    slot_of_group = slots[repeats.first]
    column_gain = np.bincount(slot_of_group, group_weight * (counts - 1.0), num_nodes * num_columns)
    cells_of_node = np.bincount(node_of_cell, minlength=num_nodes)
    column_share = column_gain[slot_of_group] / cells_of_node[node_of_cell[repeats.first]]
    scores: Floats = np.sqrt(group_weight * (counts - 1.0) / counts * column_share)
    return scores


def _dense(numbers: Ints) -> tuple[Ints, int]:
    """Numbers without gaps, in the same order, and how many there are."""
    used = np.bincount(numbers) > 0
    return (np.cumsum(used) - 1)[numbers], int(np.count_nonzero(used))


def _undisputed_groups(repeats: _Repeats, scores: Floats) -> npt.NDArray[np.bool_]:
    """The groups that every one of their items likes best, the later group where scores are equal; bool [groups].

    Taking them all at once equals taking the best group again and again, as a group only loses by what others take.
    """
    starts = np.flatnonzero(np.diff(repeats.items, prepend=-1))
    repetitions = np.diff(starts, append=len(repeats.items))
    score = scores[repeats.groups]
    is_best = score == np.repeat(np.maximum.reduceat(score, starts), repetitions)
    liked = np.maximum.reduceat(np.where(is_best, repeats.groups, -1), starts)
    return np.equal(np.bincount(liked, minlength=len(scores)), repeats.counts)
