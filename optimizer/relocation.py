"""Moving single rows to the cluster with which they share most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clusters import Clusters, depths, filled_clusters, select_clusters
from .grouping import Indices, Ints, first_equal, first_of_group, group_keys

CHUNK_CELLS = 60_000  # of rows that are moved together


@dataclass(frozen=True)
class _Places:
    """Clusters as rows find their way into them."""

    common: Indices  # [clusters, columns]
    lengths: Ints  # [ids]
    parents: Ints  # [clusters]
    inside_length: Ints  # [clusters] length of what is common
    furthest: Ints  # [clusters] the most that some cluster in it has in common
    children: Ints  # [own cells] clusters by the cells that they add to their parents
    own_ids: Indices  # [own cells] these cells


def relocate_rows(clusters: Clusters, common: Indices, ids: Indices, lengths: Ints) -> Clusters:
    """Each row directly inside the cluster whose rows it shares most with, as the clusters are now.

    A row that shares only a part of what a cluster has in common comes to stand beside it; regrouping puts a cluster
    around both. `common` is [clusters, columns], `ids` [rows, columns], `lengths` [ids], 0 for id 0.
    """
    parents = clusters.parents.astype(np.int64)
    inside_length = lengths[common].sum(axis=1)
    own = np.where(common[parents] > 0, 0, common)
    own[0] = 0
    children, columns = np.nonzero(lengths[own] > 0)
    furthest = _furthest(parents, inside_length)
    places = _Places(common, lengths, parents, inside_length, furthest, children, own[children, columns])
    home = clusters.rows.copy()
    # what a row shares is no more than its cells that any cluster has in common
    known_lengths = np.zeros_like(lengths)
    for known in (places.own_ids, common[0]):
        known_lengths[known] = lengths[known]
    step = max(CHUNK_CELLS // ids.shape[1], 1) if ids.size else 1
    for start in range(0, len(ids), step):
        most = known_lengths[ids[start : start + step]].sum(axis=1)
        _move(places, ids[start : start + step], most, home[start : start + step])
    moved = Clusters(clusters.parents, home)
    return select_clusters(moved, filled_clusters(moved))


def _move(places: _Places, ids: Indices, most: Ints, home: Indices) -> None:
    """Write to `home` [rows] where rows share most; `most` [rows] is a bound for that."""
    num_clusters = len(places.parents)
    best = places.inside_length[home]
    rows = np.flatnonzero(most > best)
    inside = np.zeros(len(rows), dtype=np.int64)
    while len(rows):
        # how far rows come when they go one cluster further inside, to one that they hold some cells of
        which, cells, child = _shared_with_children(places, rows, inside, ids)
        steps = group_keys(which * num_clusters + child, len(rows) * num_clusters)
        first = first_of_group(steps)
        which, child = which[first], child[first]
        rows, inside = rows[which], inside[which]
        shared = places.inside_length[inside] + np.bincount(steps, places.lengths[cells], len(first)).astype(np.int64)
        whole = shared == places.inside_length[child]
        # of the steps of one row the longest is the last that is written
        better = np.flatnonzero(shared > best[rows])
        better = better[np.argsort(shared[better], kind="stable")]
        best[rows[better]] = shared[better]
        home[rows[better]] = np.where(whole[better], child[better], inside[better])
        further = whole & (np.minimum(places.furthest[child], most[rows]) > best[rows])
        rows, inside = rows[further], child[further]


def _shared_with_children(places: _Places, rows: Ints, inside: Ints, ids: Indices) -> tuple[Ints, Ints, Ints]:
    """Each cell of the rows that a child of the cluster around has too: place in `rows`, id, and the child."""
    num_clusters, num_ids = len(places.parents), len(places.lengths)
    is_around = np.zeros(num_clusters, dtype=bool)
    is_around[inside] = True
    at = np.flatnonzero(is_around[places.parents[places.children]])
    children, own_ids = places.children[at], places.own_ids[at]
    is_own = np.zeros(num_ids, dtype=bool)
    is_own[own_ids] = True
    which, columns = np.nonzero(is_own[ids[rows]])
    new = np.flatnonzero(places.common[inside[which], columns] == 0)
    which, cells = which[new], ids[rows[which[new]], columns[new]].astype(np.int64)
    keys = np.concatenate([places.parents[children] * num_ids + own_ids, inside[which] * num_ids + cells])
    first = first_equal(keys, num_clusters * num_ids)[len(children) :]
    has = np.flatnonzero(first < len(children))
    return which[has], cells[has], children[first[has]]


def _furthest(parents: Ints, inside_length: Ints) -> Ints:
    furthest = inside_length.copy()
    depth = depths(parents)
    for level in range(int(depth.max()), 0, -1):
        at = np.flatnonzero(depth == level)
        np.maximum.at(furthest, parents[at], furthest[at])
    return furthest
