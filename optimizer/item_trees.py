"""Groups of rows that share items of a list, in whichever order the items are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .clusters import Clusters, depths, saved_length, settled
from .grouping import Indices, Ints
from .growth import Floats, grow
from .relocation import relocate_rows
from .unordered import ItemLists, common_order

MAX_ALIGNED = 20_000_000  # cells
MAX_COLUMNS = 256
MAX_RELOCATIONS = 3  # rounds; later ones find little
RELOCATION_CELLS = 3_000_000


@dataclass(frozen=True)
class AlignedItems:
    """Lists as a table in which each item has one column, so that shared items stand in the same place."""

    ids: Indices  # [rows, columns] item ids, 0 where a list does not have an item of the column
    columns: Ints  # [distinct items + 1] the column of each item, -1 for those that have none


def align_items(items: ItemLists) -> AlignedItems:
    """Give every item that two rows have a column that no other item of these rows has, the frequent ones first.

    Items for which there is no room are taken as not shared.
    """
    once = np.where(_repeated_in_row(items.ids), 0, items.ids)
    rows, places = np.nonzero(once)
    ids = once[rows, places]
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids, minlength=len(items.lengths))
    ends = np.cumsum(counts)
    columns = np.full(len(counts), -1, dtype=np.int64)
    limit = min(MAX_COLUMNS, MAX_ALIGNED // max(len(once), 1))
    taken = [0] * len(once)  # columns of each row, as bits
    for item in np.argsort(-counts, kind="stable")[: int(np.count_nonzero(counts > 1))].tolist():
        holders = rows[order[ends[item] - counts[item] : ends[item]]].tolist()
        used = 0
        for row in holders:
            used |= taken[row]
        free = ~used & (used + 1)  # the lowest bit that is not set
        column = free.bit_length() - 1
        if column < limit:
            columns[item] = column
            for row in holders:
                taken[row] |= free
    aligned = np.zeros((len(once), int(columns.max(initial=-1)) + 1), dtype=np.int32)
    known = columns[ids] >= 0
    aligned[rows[known], columns[ids[known]]] = ids[known]
    return AlignedItems(aligned, columns)


def shared_order(items: ItemLists, aligned: AlignedItems, homes: Ints, *, relocations: int = MAX_RELOCATIONS) -> Ints:
    """Positions of items [rows, most items] so that rows of one home begin with the items that they share.

    `homes` [rows] numbers rows that share all that stands before the list. Groups grow by single items; then rows move
    to the group they share most with, as long as that saves more, in so many rounds at most. Items that are not shared
    keep the common order behind those that are.
    """
    clusters, common = _cluster(items, aligned, homes, relocations)
    level, depth = np.full(common.shape, -1, dtype=np.int64), depths(clusters.parents)
    for number in range(1, int(depth.max(initial=0)) + 1):
        cluster = np.flatnonzero(depth == number)
        above = clusters.parents[cluster]
        level[cluster] = np.where(common[above] > 0, level[above], number)
    level = np.where(common > 0, level * common.shape[1] + np.arange(common.shape[1]), -1)
    columns = np.where(_repeated_in_row(items.ids), -1, aligned.columns[items.ids])
    rank = np.where(columns >= 0, level[clusters.rows[:, None], columns], -1) if level.size else columns
    rest = np.empty(items.ids.shape, dtype=np.int64)
    np.put_along_axis(rest, common_order(items), np.arange(items.ids.shape[1])[None, :], axis=1)
    return np.argsort(np.where(rank >= 0, rank, int(level.max(initial=0)) + 1 + rest), axis=1, kind="stable")


def _cluster(items: ItemLists, aligned: AlignedItems, homes: Ints, relocations: int) -> tuple[Clusters, Indices]:
    """Clusters in which those of the homes are the outer ones, and what each has in common, [clusters, columns]."""
    growth = grow_items(items, homes)
    num_homes = int(homes.max(initial=0)) + 1
    # a home is one more item, worth more than all others, so that no row leaves it
    num_ids, heavy = len(items.lengths), int(items.lengths[items.ids].sum(axis=1).max(initial=0)) + 1
    ids = np.concatenate([aligned.ids, (num_ids + homes)[:, None]], axis=1, dtype=np.int32)
    lengths = np.concatenate([items.lengths, np.full(num_homes, heavy)])
    parents = np.concatenate([[-1], np.where(growth.parents < 0, 0, growth.parents + 1)]).astype(np.int32)
    clusters, common = settled(Clusters(parents, (growth.rows + 1).astype(np.int32)), ids, lengths)
    for _ in range(relocations if ids.size <= RELOCATION_CELLS else 0):
        moved, moved_common = settled(relocate_rows(clusters, common, ids, lengths), ids, lengths)
        if saved_length(moved, lengths[moved_common]) <= saved_length(clusters, lengths[common]):
            break
        clusters, common = moved, moved_common
    return clusters, common[:, :-1]


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
