"""Field order per row from nested clusters of rows: the method of this project."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .clusters import Clusters, common_cells, depths, grow_clusters, regroup, saved_length, without_redundant
from .dependencies import equivalent_columns, find_dependencies
from .fixed import Fields, fixed_fields
from .grouping import Ints
from .heads import head_columns
from .ophr import ophr_fields
from .prefix_tree import depth_first, prompt_sequences
from .relocation import relocate_rows

EXACT_ROWS = 8
PART_ROWS = 125_000
RESTART_CELLS = 20_000
MAX_RESTARTS = 8
RELOCATION_CELLS = 300_000


def tree_fields(cells: Cells, dependencies: npt.NDArray[np.bool_] | None = None, seed: int = 0) -> Fields:
    """For each row its columns in prompt order, int32 [rows, columns]; the rows should be distinct.

    Rows are clustered from the outside in by the cells that they share, clusters that have something in common are
    put together once more, and each cell then stands where the outermost cluster that shares it begins. Tables of up
    to EXACT_ROWS rows are solved exactly; other small ones a few times with columns weighted at random by `seed`.
    Columns that determine each other (`dependencies` bool [columns, columns], found when None) are chosen as one.
    Large tables are cut into parts along the order that `fixed` gives: rows of one part share most of what they can.
    """
    if cells.num_rows > PART_ROWS:
        fields = fixed_fields(cells)
        order = depth_first(prompt_sequences(cells, fields))
        for part in np.array_split(order, -(-cells.num_rows // PART_ROWS)):
            fields[part] = tree_fields(cells.select_rows(part), dependencies, seed)
        return fields
    if cells.num_rows <= EXACT_ROWS or not cells.num_columns:
        return ophr_fields(cells)
    # NULL takes no room, but where it stands should be the same for rows that stand together
    ids = np.where(cells.codes < 0, len(cells.id_lengths) + np.arange(cells.num_columns), cells.ids)
    lengths = np.concatenate([cells.id_lengths, np.zeros(cells.num_columns, dtype=np.int64)])
    weights = _merged(lengths[ids], find_dependencies(cells) if dependencies is None else dependencies)
    generator = np.random.default_rng(seed)
    clusters, common = _cluster(ids, lengths, weights)
    for _ in range(min(RESTART_CELLS // ids.size, MAX_RESTARTS)):
        favour = np.exp(generator.normal(0, 0.5, cells.num_columns))
        other, other_common = _cluster(ids, lengths, weights * favour)
        if saved_length(other, lengths[other_common]) > saved_length(clusters, lengths[common]):
            clusters, common = other, other_common
    return _fields(clusters, common, head_columns(cells, clusters, common))


def _merged(lengths: Ints, dependencies: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Lengths [rows, columns] with those of equivalent columns added up in the first of them."""
    merged = np.zeros(lengths.shape)
    for column, first in enumerate(equivalent_columns(dependencies)):
        merged[:, first] += lengths[:, column]
    return merged


def _cluster(ids: Ints, lengths: Ints, weights: npt.NDArray[np.float64]) -> tuple[Clusters, Ints]:
    """Clusters and what each has in common, [clusters, columns]; `weights` [rows, columns] is the worth of cells."""
    clusters = _settled(grow_clusters(ids, weights), ids, lengths)
    common = common_cells(clusters, ids)
    if ids.size <= RELOCATION_CELLS:
        moved = _settled(relocate_rows(clusters, common, ids, lengths), ids, lengths)
        moved_common = common_cells(moved, ids)
        if saved_length(moved, lengths[moved_common]) > saved_length(clusters, lengths[common]):
            return moved, moved_common
    return clusters, common


def _settled(clusters: Clusters, ids: Ints, lengths: Ints) -> Clusters:
    clusters = without_redundant(clusters, common_cells(clusters, ids))
    return regroup(clusters, ids, lengths.astype(np.float64))


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
