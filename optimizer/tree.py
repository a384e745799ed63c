"""Field order per row from nested clusters of rows: the method of this project."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .clusters import Clusters, depths, grow_clusters, saved_length, settled
from .dependencies import find_dependencies
from .fixed import Fields, field_type
from .grouping import AnyInts, Indices, Ints
from .growth import Floats
from .heads import head_columns
from .numbering import merged_lengths, number
from .ophr import ophr_fields
from .relocation import relocate_rows
from .table_parts import cut_table
from .working_memory import part_cells

EXACT_ROWS = 8
RESTART_CELLS = 20_000
MAX_RESTARTS = 8
RELOCATION_CELLS = 300_000


def tree_fields(
    cells: Cells,
    dependencies: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
    working_memory: int | None = None,
) -> Fields:
    """For each row its columns in prompt order, [rows, columns]; the rows should be distinct.

    Rows are clustered from the outside in by the cells that they share, clusters that have something in common are
    put together once more, and each cell then stands where the outermost cluster that shares it begins. Tables of up
    to EXACT_ROWS rows are solved exactly; other small ones a few times with columns weighted at random by `seed`.
    Columns that determine each other (`dependencies` bool [columns, columns], found when None) are chosen as one.
    Large tables are cut into parts (`cut_table`), smaller ones where the working memory in bytes holds no more.
    """
    known = find_dependencies(cells) if dependencies is None else dependencies
    part_rows = max(part_cells(working_memory) // max(cells.num_columns, 1), EXACT_ROWS)
    if cells.num_rows <= part_rows:
        return _part_fields(cells, None, known, seed)
    fields = np.empty(cells.codes.shape, dtype=field_type(cells.num_columns))
    for rows in cut_table(cells, part_rows, known, lambda sample: _part_fields(sample, None, known, seed), seed):
        fields[rows] = _part_fields(cells, rows, known, seed)
    return fields


def _part_fields(cells: Cells, rows: Indices | None, dependencies: npt.NDArray[np.bool_], seed: int) -> Fields:
    if not cells.num_columns or (cells.num_rows if rows is None else len(rows)) <= EXACT_ROWS:
        return ophr_fields(cells if rows is None else cells.select_rows(rows))
    numbering = number(cells, rows)
    ids, lengths = numbering.ids, numbering.lengths
    weights = merged_lengths(numbering, dependencies)
    clusters, common = _cluster(ids, lengths, weights)
    generator = np.random.default_rng(seed)
    for _ in range(min(RESTART_CELLS // ids.size, MAX_RESTARTS)):
        favour = np.exp(generator.normal(0, 0.5, cells.num_columns))
        favoured = weights * np.concatenate([[1], np.repeat(favour, np.diff(numbering.firsts))])
        other, other_common = _cluster(ids, lengths, favoured)
        if saved_length(other, lengths[other_common]) > saved_length(clusters, lengths[common]):
            clusters, common = other, other_common
    return _fields(clusters, common, head_columns(cells, numbering, clusters, common))


def _cluster(ids: Indices, lengths: Ints, weights: Floats) -> tuple[Clusters, Indices]:
    """Clusters and what each has in common, [clusters, columns]; `weights` [ids] is the worth of cells."""
    clusters, common = settled(grow_clusters(ids, weights), ids, lengths)
    if ids.size <= RELOCATION_CELLS:
        moved, moved_common = settled(relocate_rows(clusters, common, ids, lengths), ids, lengths)
        if saved_length(moved, lengths[moved_common]) > saved_length(clusters, lengths[common]):
            return moved, moved_common
    return clusters, common


def _fields(clusters: Clusters, common: AnyInts, heads: Ints) -> Fields:
    """Columns by the depth at which they become common, at each depth first the one that suits the neighbours."""
    parents, depth = clusters.parents, depths(clusters.parents)
    columns = np.arange(common.shape[1])
    level = np.full(common.shape, -1, dtype=np.int32)  # where a column is not common the value is not used
    for cluster in np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth)))[1:-1]:
        above = parents[cluster]
        own_level = 2 * depth[cluster][:, None] - (columns == heads[above][:, None])
        level[cluster] = np.where(common[above] > 0, level[above], own_level)
    # rows directly in the same cluster have the same order
    tail_level = 2 * len(level) - (columns == heads[:, None])
    order = np.argsort(np.where(common > 0, level, tail_level), axis=1, kind="stable")
    return order.astype(field_type(len(columns)))[clusters.rows]
