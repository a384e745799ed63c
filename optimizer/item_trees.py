"""Nested groups of rows that share items of a list, in whichever order the items are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .clusters import depths
from .grouping import Ints
from .growth import grow
from .unordered import ItemLists, common_order

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ItemTree:
    """Nodes 0, 1, ... are the homes in which rows start; every further node lies in its parent and shares an item."""

    parents: Ints  # [nodes], -1 for homes
    ids: Ints  # [nodes] the item that the rows of each share beyond those of its parent, 0 for homes
    rows: Ints  # [rows] the innermost node of each row


def grow_items(items: ItemLists, homes: Ints) -> ItemTree:
    """The tree of items that rows of one home can share; `homes` [rows] numbers rows that share all before the list."""
    once = np.where(_repeated_in_row(items.ids), 0, items.ids).astype(np.int32)
    num_homes = int(homes.max(initial=0)) + 1
    growth = grow(once, items.lengths.astype(np.float64), homes, num_homes, as_sets=True)
    parents = np.concatenate([np.full(num_homes, -1), growth.parents])
    return ItemTree(
        parents, np.concatenate([np.zeros(num_homes, dtype=np.int64), growth.ids]), growth.nodes.astype(np.int64)
    )


def _repeated_in_row(ids: Ints) -> npt.NDArray[np.bool_]:
    """Whether an item stands earlier in the same row, [rows, most items]."""
    repeated = np.zeros(ids.shape, dtype=bool)
    for place in range(1, ids.shape[1]):
        repeated[:, place] = (ids[:, :place] == ids[:, place, None]).any(axis=1)
    return repeated


def tree_order(tree: ItemTree, items: ItemLists) -> Ints:
    """Positions of items [rows, most items] so that rows of one node begin with the items that they share.

    Items that are not shared keep the common order behind those that are.
    """
    ids, depth = items.ids, depths(tree.parents)
    rank = np.empty(ids.shape, dtype=np.int64)
    np.put_along_axis(rank, common_order(items), np.arange(ids.shape[1])[None, :], axis=1)
    rank += len(tree.parents)
    node = tree.rows.copy()
    inside = np.flatnonzero(depth[node] > 0)
    while len(inside):
        here = node[inside]
        place = (ids[inside] == tree.ids[here][:, None]).argmax(axis=1)
        rank[inside, place] = depth[here]
        node[inside] = tree.parents[here]
        inside = inside[depth[node[inside]] > 0]
    return np.argsort(rank, axis=1, kind="stable")


def saved_by_row(tree: ItemTree, items: ItemLists) -> Floats:
    """What each row saves by sharing items, [rows]: the savings of a node are split evenly among its rows."""
    depth = depths(tree.parents)
    counts = np.bincount(tree.rows, minlength=len(tree.parents)).astype(np.float64)
    levels = [np.flatnonzero(depth == d) for d in range(1, int(depth.max(initial=0)) + 1)]
    for level in reversed(levels):
        np.add.at(counts, tree.parents[level], counts[level])
    saved = np.zeros(len(tree.parents))
    for level in levels:
        shares = (counts[level] - 1) / counts[level]
        saved[level] = saved[tree.parents[level]] + items.lengths[tree.ids[level]] * shares
    rows: Floats = saved[tree.rows]
    return rows
