"""Growing groups of items that share cells, for many nodes at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .grouping import AnyInts, Indices, Ints, first_equal, group_keys, run_starts, runs, stable_order

Floats = npt.NDArray[np.float64]
FREE_BITS, BITS_POWER = 3.0, 0.4  # best of a few on real tables and on generated ones of ten kinds
BATCH_CELLS = 150_000  # grown together; their tables stay in a processor's cache
PATIENCE = 500_000  # cells of a batch or a large node looked at before growing gets less picky
CHUNK = 100_000  # items of a large node looked at together
LOW_BITS = np.int64(0xFFFFFFFF)


class Growth:
    """Nodes that were made below the ones given, and where the items are now."""

    def __init__(self, nodes: AnyInts, num_nodes: int):
        self.nodes: Indices = nodes.astype(np.int32)  # [items] the deepest node of each item
        self.num_nodes = num_nodes
        self._sizes = np.bincount(nodes, minlength=num_nodes)  # with room for more
        self._parents: list[AnyInts] = [np.zeros(0, dtype=np.int32)]
        self._ids: list[AnyInts] = [np.zeros(0, dtype=np.int32)]

    @property
    def parents(self) -> Indices:
        """The node that each new node was split from, [new nodes]; new nodes are numbered on from the old."""
        return np.concatenate(self._parents).astype(np.int32)

    @property
    def ids(self) -> Indices:
        """The cell that the items of each new node share beyond those of its parent, [new nodes]."""
        return np.concatenate(self._ids).astype(np.int32)

    @property
    def sizes(self) -> Ints:
        """How many items each node has, those further inside included, [nodes]."""
        return self._sizes[: self.num_nodes]

    def split(self, items: AnyInts, groups: AnyInts, parents: AnyInts, ids: AnyInts) -> None:
        """Move items to new nodes: `groups` [items] numbers the entries of `parents` and `ids` [groups]."""
        first, self.num_nodes = self.num_nodes, self.num_nodes + len(parents)
        self.nodes[items] = first + groups
        if self.num_nodes > len(self._sizes):
            self._sizes = np.append(self._sizes, np.zeros(self.num_nodes, dtype=np.int64))
        self._sizes[first : self.num_nodes] = np.bincount(groups, minlength=len(parents))
        self._parents.append(parents)
        self._ids.append(ids)


def grow(ids: Indices, weights: Floats, nodes: AnyInts, num_nodes: int, *, as_sets: bool = False) -> Growth:
    """Split nodes into groups of items that share a cell, groups into smaller ones, until no cell is shared.

    `ids` [items, columns] are at least 0, `weights` [distinct ids] is what sharing an id is worth; id 0 and ids of
    weight 0 take no part. `nodes` [items] is where items start. Cells of different columns have different ids, except
    with `as_sets`, where it does not matter in which column an id stands; no item may then hold one twice.
    A cell that all items of a node share is not split by, since it stands outside of all groups there; with
    `as_sets` it is, so that `Growth.ids` names all that is shared.
    """
    growth = Growth(nodes, num_nodes)
    weights = np.where(np.bincount(ids.ravel(), minlength=len(weights)) > 1, weights, 0)
    weights[:1] = 0
    columns = ids.shape[1]
    if not as_sets:
        for node in np.flatnonzero(np.bincount(nodes, minlength=num_nodes) * columns > BATCH_CELLS).tolist():
            _split_large(growth, ids, weights, node)
    order = stable_order(growth.nodes, growth.num_nodes)
    for first, last in runs(growth.nodes[order], max(BATCH_CELLS // max(columns, 1), 1)):
        _split_batch(growth, ids, weights, np.sort(order[first:last]), as_sets)
    return growth


def favourites(
    columns: Iterable[Indices], weights: Floats, num_items: int, ignored: int = 0
) -> tuple[Indices, Indices]:
    """For items of one node the cell by which each would best be grouped, 0 for none, and how many items have it.

    `columns` are the ids [items] of the items' cells; those of one column lie in a range of their own. Cells that
    `ignored` items have are left out.
    """
    best = np.zeros(num_items, dtype=np.float32)
    liked, sizes = np.zeros(num_items, dtype=np.int32), np.zeros(num_items, dtype=np.int32)
    for column in columns:
        low = int(column.min())
        counts = np.zeros(int(column.max()) - low + 1, dtype=np.int64)
        for start in range(0, num_items, CHUNK):
            counts += np.bincount(column[start : start + CHUNK] - low, minlength=len(counts))
        shared = np.flatnonzero((counts > 1) & (counts != ignored))
        if not len(shared):
            continue
        gains = weights[low + shared] * (counts[shared] - 1.0)
        scores = np.zeros(len(counts), dtype=np.float32)
        scores[shared] = _scores(gains, np.sum(gains, keepdims=True), counts[shared], num_items)
        for start in range(0, num_items, CHUNK):
            some = slice(start, start + CHUNK)
            places = column[some] - low
            better = scores[places] > best[some]
            np.copyto(best[some], scores[places], where=better)
            np.copyto(liked[some], column[some], where=better)
            np.copyto(sizes[some], counts[places], where=better, casting="same_kind")
    return liked, sizes


def _split_large(growth: Growth, ids: Indices, weights: Floats, node: int) -> None:
    """Split one node until what is left of it is small; its cells are too many to be held one by one."""
    items = np.flatnonzero(growth.nodes == node)
    work = 0
    while items.size * ids.shape[1] > BATCH_CELLS:
        columns = (ids[items, column] for column in range(ids.shape[1]))
        liked, sizes = favourites(columns, weights, len(items), int(growth.sizes[node]))
        first = first_equal(liked.astype(np.int64), len(weights))
        likes = np.bincount(first, minlength=len(items))[first]
        taken = (liked > 0) & (likes >= _enough_likes(sizes, work))
        work += items.size * ids.shape[1]
        if not taken.any():
            return
        groups = group_keys(liked[taken], len(weights))
        names = liked[np.flatnonzero(taken & (first == np.arange(len(items))))]
        growth.split(items[taken], groups, np.full(len(names), node), names)
        items = items[~taken]


def _split_batch(growth: Growth, ids: Indices, weights: Floats, items: Ints, as_sets: bool) -> None:
    """Split all nodes that some items stand in; `items` are ascending and all that those nodes have."""
    columns, all_ids = ids.shape[1], ids.ravel()
    cells = np.flatnonzero((weights > 0)[ids[items]])
    if len(items) < len(ids):
        cells = items[cells // columns] * columns + cells % columns
    cells = cells.astype(np.int32 if ids.size < 2**31 else np.int64)  # places in all_ids
    work = 0
    while len(cells):
        node = growth.nodes[cells // columns]
        group_of_cell, groups, counts = _shared_by_some(growth, node, all_ids[cells], len(weights), as_sets)
        if not len(groups):
            return
        group_cells, group_nodes = cells[groups], node[groups]
        kept = np.flatnonzero(group_of_cell >= 0)
        cells, group_of_cell = cells[kept], group_of_cell[kept]
        item = cells // columns
        starts = run_starts(item)
        first_items = item[starts]
        gains = weights[all_ids[group_cells]] * (counts - 1.0)
        node_number = group_keys(group_nodes, growth.num_nodes)
        slot = node_number if as_sets else node_number * columns + group_cells % columns
        here = np.bincount(growth.nodes[first_items], minlength=growth.num_nodes)[group_nodes]
        column_gains = np.bincount(slot, gains).astype(np.float64, copy=False)
        scores = _scores(gains, column_gains[slot], counts, here)
        # of equal scores the later group is better
        ranks = (scores.astype(np.float32).view(np.int32).astype(np.int64) << 32) | np.arange(len(scores))
        rank_of_cell = ranks[group_of_cell]
        best = np.maximum.reduceat(rank_of_cell, starts)
        liked = best & LOW_BITS
        likes = np.bincount(liked, minlength=len(groups))
        taken = likes >= _enough_likes(counts, work)
        work += len(cells)
        moved = taken[liked]
        place = np.cumsum(taken) - 1
        growth.split(first_items[moved], place[liked[moved]], group_nodes[taken], all_ids[group_cells[taken]])
        is_best = rank_of_cell == np.repeat(best, np.diff(starts, append=len(cells)))
        cells = cells[np.flatnonzero(~(is_best & taken[group_of_cell]))]


def _shared_by_some(
    growth: Growth, nodes: Indices, ids: Indices, num_ids: int, as_sets: bool
) -> tuple[Indices, Ints, Ints]:
    """Groups of equal cells of one node: that of each cell (-1 for none), and the first cell and size of each.

    `nodes` and `ids` are [cells]. With `as_sets` a group may be all items of its node.
    """
    first = first_equal(nodes * np.int64(num_ids) + ids, growth.num_nodes * num_ids)
    counts = np.bincount(first)
    groups = np.flatnonzero(counts > 1)
    if not as_sets:
        groups = groups[counts[groups] < growth.sizes[nodes[groups]]]
    number = np.full(len(counts), -1, dtype=np.int32)
    number[groups] = np.arange(len(groups), dtype=np.int32)
    return number[first], groups, counts[groups]


def _scores(gains: Floats, column_gains: Floats, counts: Ints, node_sizes: AnyInts | int) -> Floats:
    """How good groups are for their items; only groups of one node are compared.

    What the group saves per item and what its column saves in the node are averaged geometrically: that follows whole
    columns where they pay and single heavy values where those do. A group that is a small part of its node leaves
    little to share further inside, so the score falls with the bits it takes, log2(node size / group size).
    """
    bits = np.log2(np.maximum(node_sizes / counts, 1))
    scores: Floats = np.sqrt(gains / counts * column_gains) / (bits + FREE_BITS) ** BITS_POWER
    return scores


def _enough_likes(counts: AnyInts, work: int) -> Floats:
    """The likes for which a group is made.

    When all its items like it best, making it equals taking the best group again and again, since a group only loses
    by what others take. Large inputs settle for the items that like it, once they are many enough.
    """
    share = 1.0 if work <= PATIENCE else 0.75 if work <= 4 * PATIENCE else 0.5 if work <= 8 * PATIENCE else 0.0
    enough: Floats = np.maximum(np.ceil(share * counts), 2.0)
    return enough
