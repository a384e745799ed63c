"""Moving single rows to the cluster with which they share most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clusters import Clusters
from .grouping import Ints, first_of_group, group_keys


@dataclass(frozen=True)
class _Steps:
    """How far rows come when they go one cluster further inside; all arrays are [steps]."""

    rows: Ints
    clusters: Ints  # the cluster that the row holds some cells of
    shared: Ints  # length of what the row shares with it, what it shares with the clusters around included


def relocate_rows(clusters: Clusters, common: Ints, ids: Ints, lengths: Ints) -> Clusters:
    """Each row directly inside the cluster whose rows it shares most with, as the clusters are now.

    A row that shares only a part of what a cluster has in common comes to stand beside it; regrouping puts a cluster
    around both. `common` is [clusters, columns], `ids` [rows, columns], `lengths` [distinct cells], 0 for id 0.
    """
    inside_length = lengths[common].sum(axis=1)
    own = np.where(common[clusters.parents] > 0, 0, common)  # what each cluster adds to its parent
    own[0] = 0
    keys, children = _cells_of_children(clusters, own, lengths)
    best, home = inside_length[clusters.rows], clusters.rows.copy()
    rows, inside = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    while len(rows) and len(keys):
        steps = _steps(rows, inside, common, ids, lengths, inside_length, keys, children)
        whole = steps.shared == inside_length[steps.clusters]
        # of the steps of one row the longest is the last that is written
        order = np.argsort(steps.shared, kind="stable")
        order = order[steps.shared[order] > best[steps.rows[order]]]
        best[steps.rows[order]] = steps.shared[order]
        home[steps.rows[order]] = np.where(whole, steps.clusters, clusters.parents[steps.clusters])[order]
        rows, inside = steps.rows[whole], steps.clusters[whole]
    return _without_empty(Clusters(clusters.parents, home))


def _cells_of_children(clusters: Clusters, own: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Sorted keys parent * ids + cell, and the child cluster that has the cell in common."""
    children, columns = np.nonzero(lengths[own] > 0)
    keys = clusters.parents[children] * len(lengths) + own[children, columns]
    order = np.argsort(keys, kind="stable")
    return keys[order], children[order]


def _steps(
    rows: Ints, inside: Ints, common: Ints, ids: Ints, lengths: Ints, inside_length: Ints, keys: Ints, children: Ints
) -> _Steps:
    which, columns = np.nonzero((common[inside] == 0) & (lengths[ids[rows]] > 0))
    cells = ids[rows[which], columns]
    wanted = inside[which] * len(lengths) + cells
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[place] == wanted
    which, cells, child = which[found], cells[found], children[place[found]]
    groups = group_keys(which * len(common) + child)
    first = first_of_group(groups)
    shared = np.bincount(groups, lengths[cells], len(first)).astype(np.int64)
    return _Steps(rows[which[first]], child[first], inside_length[inside[which[first]]] + shared)


def _without_empty(clusters: Clusters) -> Clusters:
    """The clusters that hold a row, directly or further inside."""
    filled = np.zeros(clusters.num_clusters, dtype=bool)
    filled[0] = True
    above = np.unique(clusters.rows)
    while len(above):
        filled[above] = True
        above = np.unique(clusters.parents[above])
        above = above[(above >= 0) & ~filled[above]]
    number = np.cumsum(filled) - 1
    parents = clusters.parents[filled]
    return Clusters(np.concatenate([[-1], number[parents[1:]]]), number[clusters.rows])
