"""Field order per row from nested clusters of rows: the method of this project."""

from __future__ import annotations

import numpy as np

from .cells import Cells
from .clusters import Clusters, common_cells, depths, grow_clusters, regroup, without_redundant
from .fixed import Fields
from .grouping import Ints
from .heads import head_columns


def tree_fields(cells: Cells) -> Fields:
    """For each row its columns in prompt order, int32 [rows, columns]; the rows should be distinct.

    Rows are clustered from the outside in by the cells that they share, clusters that have something in common are
    put together once more, and each cell then stands where the outermost cluster that shares it begins.
    """
    # NULL takes no room, but where it stands should be the same for rows that stand together
    ids = np.where(cells.codes < 0, len(cells.id_lengths) + np.arange(cells.num_columns), cells.ids)
    lengths = np.concatenate([cells.id_lengths, np.zeros(cells.num_columns, dtype=np.int64)])
    if not ids.size:
        return np.zeros(ids.shape, dtype=np.int32)
    clusters = grow_clusters(ids, lengths[ids])
    clusters = without_redundant(clusters, common_cells(clusters, ids))
    clusters = regroup(clusters, ids, lengths)
    common = common_cells(clusters, ids)
    return _fields(clusters, common, head_columns(cells, clusters, common))


def _fields(clusters: Clusters, common: Ints, heads: Ints) -> Fields:
    """Columns by the depth at which they become common, at each depth first the one that suits the neighbours."""
    parents, depth = clusters.parents, depths(clusters.parents)
    columns = np.arange(common.shape[1])
    level = np.full(common.shape, -1)  # of each cluster and column; where it is not common the value is not used
    for cluster in np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth)))[1:-1]:
        above = parents[cluster]
        own_level = 2 * depth[cluster][:, None] - (columns == heads[above][:, None])
        level[cluster] = np.where(common[above] > 0, level[above], own_level)
    tail_level = 2 * len(level) - (columns == heads[clusters.rows][:, None])
    level = np.where(common[clusters.rows] > 0, level[clusters.rows], tail_level)
    return np.argsort(level, axis=1, kind="stable").astype(np.int32)
