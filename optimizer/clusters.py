"""Nested groups of rows: the shape of a prefix tree before anything is said about field orders.

A cluster's common cells are those that all its rows share. Putting each cell at the outermost cluster in which it is
common gives a field order for every row, and saves (children - 1) * length(common cells), summed over clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grouping import Ints
from .growth import Floats, grow


@dataclass(frozen=True)
class Clusters:
    """Cluster 0 holds all rows; every other one lies in its parent."""

    parents: Ints  # [clusters], -1 for cluster 0
    rows: Ints  # [rows] the innermost cluster of each row

    @property
    def num_clusters(self) -> int:
        """Number of clusters, the outermost included."""
        return len(self.parents)


def grow_clusters(ids: Ints, weights: Floats) -> Clusters:
    """Clusters grown from the outside in; `ids` and `weights` are [rows, columns]."""
    growth = grow(ids, weights, np.zeros(len(ids), dtype=np.int64), 1)
    return Clusters(np.concatenate([[-1], growth.parents]), growth.nodes)


def regroup(clusters: Clusters, ids: Ints, lengths: Floats) -> Clusters:
    """Put clusters in between where children of one cluster share more than all of them do.

    Growing from the outside in overlooks them: rows grouped by a product do not notice that products share a brand.
    """
    common = common_cells(clusters, ids)
    item_ids = np.concatenate([common[1:], ids])
    item_parents = np.concatenate([clusters.parents[1:], clusters.rows])
    weights = np.where((item_ids > 0) & (common[item_parents] == 0), lengths[item_ids], 0)
    growth = grow(item_ids, weights, item_parents, clusters.num_clusters)
    inner = clusters.num_clusters - 1
    return Clusters(np.concatenate([[-1], growth.nodes[:inner], growth.parents]), growth.nodes[inner:])


def without_redundant(clusters: Clusters, common: Ints) -> Clusters:
    """The clusters that have more in common than their parent; `common` as from `common_cells`."""
    parents = clusters.parents
    count = (common > 0).sum(axis=1)
    keep = np.ones(len(parents), dtype=bool)
    keep[1:] = count[1:] > count[parents[1:]]
    kept = np.where(keep, np.arange(len(parents)), parents)
    while not keep[kept].all():
        kept = np.where(keep[kept], kept, parents[kept])
    number = np.cumsum(keep) - 1
    return Clusters(np.concatenate([[-1], number[kept[parents[keep][1:]]]]), number[kept[clusters.rows]])


def common_cells(clusters: Clusters, ids: Ints) -> Ints:
    """The cell that all rows of a cluster share, per column, 0 where they differ; int64 [clusters, columns]."""
    order, starts, ends = _intervals(clusters)
    ordered = ids[order]
    changes = np.zeros(ids.shape, dtype=np.int32)
    np.cumsum(ordered[1:] != ordered[:-1], axis=0, out=changes[1:])
    return np.where(changes[ends - 1] == changes[starts], ordered[starts], 0)


def saved_length(clusters: Clusters, common_lengths: Ints) -> int:
    """What the clusters save, in units of the lengths of their common cells [clusters, columns] (0 where none is)."""
    children = np.bincount(clusters.rows, minlength=clusters.num_clusters)
    children += np.bincount(clusters.parents[1:], minlength=clusters.num_clusters)
    return int((children - 1) @ common_lengths.sum(axis=1))


def depths(parents: Ints) -> Ints:
    """Number of clusters around each cluster."""
    depth = np.zeros(len(parents), dtype=np.int64)
    above = parents.copy()
    while (inside := above >= 0).any():
        depth += inside
        above = np.where(inside, parents[above], -1)
    return depth


def _intervals(clusters: Clusters) -> tuple[Ints, Ints, Ints]:
    """An order of the rows in which each cluster is an interval, and the intervals' starts and ends."""
    parents, depth = clusters.parents, depths(clusters.parents)
    own = np.bincount(clusters.rows, minlength=len(parents))
    sizes = own.copy()
    levels = [np.flatnonzero(depth == d) for d in range(int(depth.max()) + 1)]
    for level in reversed(levels[1:]):
        np.add.at(sizes, parents[level], sizes[level])
    starts = np.zeros(len(parents), dtype=np.int64)
    for level in levels[1:]:
        level = level[np.argsort(parents[level], kind="stable")]
        starts[level] = starts[parents[level]] + _sums_before(parents[level], sizes[level])
    order = np.argsort(clusters.rows, kind="stable")
    homes = clusters.rows[order]
    places = starts[homes] + (sizes - own)[homes] + _sums_before(homes, np.ones(len(homes), dtype=np.int64))
    row_order = np.empty(len(order), dtype=np.int64)
    row_order[places] = order
    return row_order, starts, starts + sizes


def _sums_before(keys: npt.NDArray[np.int64], values: Ints) -> Ints:
    """For sorted keys, the sum of the values before each entry among those of the same key."""
    before = np.cumsum(values) - values
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return before - np.maximum.accumulate(np.where(is_first, before, 0))
