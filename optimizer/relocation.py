"""Moving single rows to the cluster with which they share most."""

from __future__ import annotations

import numpy as np

from .clusters import Clusters
from .grouping import Indices, Ints, first_equal, first_of_group, group_keys


def relocate_rows(clusters: Clusters, common: Indices, ids: Indices, lengths: Ints) -> Clusters:
    """Each row directly inside the cluster whose rows it shares most with, as the clusters are now.

    A row that shares only a part of what a cluster has in common comes to stand beside it; regrouping puts a cluster
    around both. `common` is [clusters, columns], `ids` [rows, columns], `lengths` [ids], 0 for id 0.
    """
    parents, num_clusters = clusters.parents.astype(np.int64), clusters.num_clusters
    inside_length = lengths[common].sum(axis=1)
    own = np.where(common[parents] > 0, 0, common)  # what each cluster adds to its parent
    own[0] = 0
    children, columns = np.nonzero(lengths[own] > 0)
    keys = parents[children] * len(lengths) + own[children, columns]
    best, home = inside_length[clusters.rows], clusters.rows.astype(np.int64)
    rows, inside = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    while len(rows) and len(keys):
        # how far rows come when they go one cluster further inside, to one that they hold some cells of
        which, cells, child = _children_with_cells(rows, inside, common, ids, keys, children, len(lengths))
        steps = group_keys(which * num_clusters + child, len(rows) * num_clusters)
        first = first_of_group(steps)
        which, child = which[first], child[first]
        rows, inside = rows[which], inside[which]
        shared = inside_length[inside] + np.bincount(steps, lengths[cells], len(first)).astype(np.int64)
        whole = shared == inside_length[child]
        # of the steps of one row the longest is the last that is written
        better = np.flatnonzero(shared > best[rows])
        better = better[np.argsort(shared[better], kind="stable")]
        best[rows[better]] = shared[better]
        home[rows[better]] = np.where(whole[better], child[better], inside[better])
        rows, inside = rows[whole], child[whole]
    return _without_empty(Clusters(clusters.parents, home.astype(np.int32)))


def _children_with_cells(
    rows: Ints, inside: Ints, common: Indices, ids: Indices, keys: Ints, children: Ints, num_ids: int
) -> tuple[Ints, Ints, Ints]:
    """Each cell of the rows that a child of the cluster around has in common: place in `rows`, id, and the child."""
    known = np.zeros(num_ids, dtype=bool)
    known[keys % num_ids] = True
    which, columns = np.nonzero(known[ids[rows]] & (common[inside] == 0))
    cells = ids[rows[which], columns].astype(np.int64)
    wanted = inside[which] * num_ids + cells
    found = first_equal(np.concatenate([keys, wanted]), len(common) * num_ids)[len(keys) :]
    has = found < len(keys)
    return which[has], cells[has], children[found[has]]


def _without_empty(clusters: Clusters) -> Clusters:
    """The clusters that hold a row, directly or further inside."""
    filled = np.zeros(clusters.num_clusters, dtype=bool)
    filled[0] = True
    above = np.unique(clusters.rows)
    while len(above):
        filled[above] = True
        above = np.unique(clusters.parents[above])
        above = above[(above >= 0) & ~filled[above]]
    number = (np.cumsum(filled) - 1).astype(np.int32)
    parents = clusters.parents[filled]
    return Clusters(np.concatenate([[-1], number[parents[1:]]]).astype(np.int32), number[clusters.rows])
