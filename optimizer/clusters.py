"""Nested groups of rows: the shape of a prefix tree before anything is said about field orders.

A cluster's common cells are those that all its rows share. Putting each cell at the outermost cluster in which it is
common gives a field order for every row, and saves (children - 1) * length(common cells), summed over clusters.
Cells are ids [rows, columns] from 1; 0 says that there is no common cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grouping import AnyInts, Indices, Ints, stable_order
from .growth import Floats, grow


@dataclass(frozen=True)
class Clusters:
    """Cluster 0 holds all rows; every other one lies in its parent."""

    parents: Indices  # [clusters], -1 for cluster 0
    rows: Indices  # [rows] the innermost cluster of each row

    @property
    def num_clusters(self) -> int:
        """Number of clusters, the outermost included."""
        return len(self.parents)


def grow_clusters(ids: Indices, weights: Floats) -> Clusters:
    """Clusters grown from the outside in; `ids` are [rows, columns], `weights` [ids] is what sharing each is worth."""
    growth = grow(ids, weights, np.zeros(len(ids), dtype=np.int32), 1)
    return Clusters(_with_root(growth.parents), growth.nodes)


def settled(clusters: Clusters, ids: Indices, lengths: Ints) -> tuple[Clusters, Indices]:
    """The clusters without those that share no more than their parent, regrouped; and their common cells."""
    clusters, common = without_redundant(clusters, common_cells(clusters, ids))
    clusters = regroup(clusters, common, ids, lengths)
    return clusters, common_cells(clusters, ids)


def regroup(
    clusters: Clusters, common: Indices, ids: Indices, lengths: Ints, inside: npt.NDArray[np.bool_] | None = None
) -> Clusters:
    """Put clusters in between where children of one cluster share more than all of them do.

    Growing from the outside in overlooks them: rows grouped by a product do not notice that products share a brand.
    `common` [clusters, columns] is that of `common_cells`, `lengths` are those of the ids. `inside` [clusters] says
    in which clusters to look, in all when None.
    """
    parents = children_parents(clusters)
    items = np.concatenate([common[1:], ids])
    items[common[parents] > 0] = 0
    if inside is not None:
        items[~inside[parents]] = 0
    growth = grow(items, lengths.astype(np.float64), parents, clusters.num_clusters)
    inner = clusters.num_clusters - 1
    return Clusters(_with_root(np.concatenate([growth.nodes[:inner], growth.parents])), growth.nodes[inner:])


def children_parents(clusters: Clusters) -> Indices:
    """The cluster directly around each cluster but the outermost, and then around each row."""
    return np.concatenate([clusters.parents[1:], clusters.rows])


def without_redundant(clusters: Clusters, common: Indices) -> tuple[Clusters, Indices]:
    """The clusters that have more in common than their parent, and what that is; `common` as from `common_cells`."""
    parents = clusters.parents
    count = (common > 0).sum(axis=1)
    keep = np.ones(len(parents), dtype=bool)
    keep[1:] = count[1:] > count[parents[1:]]
    kept = np.where(keep, np.arange(len(parents)), parents)
    while not keep[kept].all():
        kept = np.where(keep[kept], kept, parents[kept])
    number = (np.cumsum(keep) - 1).astype(np.int32)
    return Clusters(_with_root(number[kept[parents[keep][1:]]]), number[kept[clusters.rows]]), common[keep]


def common_cells(clusters: Clusters, ids: Indices) -> Indices:
    """The id that all rows of a cluster share, per column, 0 where they differ; int32 [clusters, columns]."""
    order, starts, ends = _intervals(clusters)
    common = np.zeros((clusters.num_clusters, ids.shape[1]), dtype=np.int32)
    changes = np.zeros(len(order), dtype=np.int32)
    for column in range(ids.shape[1]):
        ordered = ids[order, column]
        np.cumsum(ordered[1:] != ordered[:-1], out=changes[1:])
        common[:, column] = np.where(changes[ends - 1] == changes[starts], ordered[starts], 0)
    return common


def filled_clusters(clusters: Clusters) -> npt.NDArray[np.bool_]:
    """Which clusters hold a row, directly or further inside, [clusters]; cluster 0 always counts."""
    filled = np.zeros(clusters.num_clusters, dtype=bool)
    filled[0] = True
    above = np.unique(clusters.rows)
    while len(above):
        filled[above] = True
        above = np.unique(clusters.parents[above])
        above = above[(above >= 0) & ~filled[above]]
    return filled


def select_clusters(clusters: Clusters, kept: npt.NDArray[np.bool_]) -> Clusters:
    """Some of the clusters [clusters], numbered anew; those around a kept one and around a row must be kept."""
    number = (np.cumsum(kept) - 1).astype(np.int32)
    return Clusters(_with_root(number[clusters.parents[kept][1:]]), number[clusters.rows])


def saved_length(clusters: Clusters, common_lengths: Ints) -> int:
    """What the clusters save, in units of the lengths of their common cells [clusters, columns] (0 where none is)."""
    children = np.bincount(children_parents(clusters), minlength=clusters.num_clusters)
    return int((children - 1) @ common_lengths.sum(axis=1))


def depths(parents: AnyInts) -> Ints:
    """Number of clusters around each cluster."""
    depth = np.zeros(len(parents), dtype=np.int64)
    inside = np.flatnonzero(parents >= 0)
    above = parents[inside]
    while len(inside):
        depth[inside] += 1
        above = parents[above]
        inside, above = inside[above >= 0], above[above >= 0]
    return depth


def _with_root(parents: AnyInts) -> Indices:
    return np.concatenate([[-1], parents]).astype(np.int32)


def _intervals(clusters: Clusters) -> tuple[Ints, Ints, Ints]:
    """An order of the rows in which each cluster is an interval, and the intervals' starts and ends."""
    parents, depth = clusters.parents, depths(clusters.parents)
    own = np.bincount(clusters.rows, minlength=len(parents))
    sizes = own.copy()
    levels = np.split(stable_order(depth, len(depth)), np.cumsum(np.bincount(depth)))[1:-1]
    for level in reversed(levels):
        np.add.at(sizes, parents[level], sizes[level])
    starts = np.zeros(len(parents), dtype=np.int64)
    for level in levels:
        level = level[stable_order(parents[level], len(parents))]
        starts[level] = starts[parents[level]] + _sums_before(parents[level], sizes[level])
    order = stable_order(clusters.rows, len(parents))
    homes = clusters.rows[order]
    places = starts[homes] + (sizes - own)[homes] + _sums_before(homes, np.ones(len(homes), dtype=np.int64))
    row_order = np.empty(len(order), dtype=np.int64)
    row_order[places] = order
    return row_order, starts, starts + sizes


def _sums_before(keys: AnyInts, values: Ints) -> Ints:
    """For sorted keys, the sum of the values before each entry among those of the same key."""
    before = np.cumsum(values) - values
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return before - np.maximum.accumulate(np.where(is_first, before, 0))
