"""Cutting a large table into parts that are planned one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .dependencies import equivalent_columns
from .fixed import Fields
from .grouping import Indices, Ints, first_equal, runs, stable_order
from .growth import favourites
from .prefix_tree import PromptCells, walk

SAMPLE_CELLS = 100_000
KEY_BITS = 48  # of the leading columns by which rows are sorted


def cut_table(
    cells: Cells,
    part_rows: int,
    dependencies: npt.NDArray[np.bool_],
    plan: Callable[[Cells], Fields],
    seed: int = 0,
) -> list[Indices]:
    """The rows of each part, ascending; a part has at most `part_rows`, and rows that share most are in one part.

    Each row goes with the group of equal cells that suits it best, as when clusters grow; that is counted on all rows,
    a column at a time, so even a value that two rows have keeps them together. Which groups belong together is learned
    on a sample of the rows drawn by `seed`: it is planned (by `plan`, as each part will be), and groups are put in the
    order of the columns in which the sample's rows share most first. A sample is enough for that, since columns by
    which many rows stand together are seen in few rows; the order of the others matters little, as parts then choose
    columns for themselves.
    """
    generator = np.random.default_rng(seed)
    size = min(max(SAMPLE_CELLS // cells.num_columns, 1), part_rows, cells.num_rows)
    sample = cells.select_rows(np.sort(generator.choice(cells.num_rows, size, replace=False)))
    columns = columns_by_place(sample, plan(sample))
    order = _sorted_by(cells, columns)
    first = first_equal(_groups(cells, dependencies)[order].astype(np.int64), cells.num_rows)
    by_group = stable_order(first, cells.num_rows)
    order, first = order[by_group], first[by_group]
    parts = []
    for start, end in runs(first, part_rows):
        parts += np.array_split(order[start:end], -(-(end - start) // part_rows))
    return [np.sort(part).astype(np.int32) for part in parts]


def columns_by_place(cells: Cells, fields: Fields) -> Ints:
    """Columns by the mean place at which rows share them with `fields`, weighted by what that saves.

    Those by which nothing is saved come last, as they stand in the table.
    """
    saved, places = np.zeros(cells.num_columns), np.zeros(cells.num_columns)
    prompts = PromptCells(cells, fields)
    for level in walk(prompts):
        again = ~level.starts
        columns = prompts.columns(level.rows[again], level.depth)
        lengths = cells.id_lengths[level.cells[again]]
        saved += np.bincount(columns, lengths, cells.num_columns)
        places += np.bincount(columns, lengths * level.depth, cells.num_columns)
    means = np.where(saved > 0, places / np.maximum(saved, 1), np.inf)
    return np.argsort(means, kind="stable")


def _sorted_by(cells: Cells, columns: Ints) -> Indices:
    """The rows sorted by the first of some columns, as many of them as are needed to tell most rows apart."""
    keys, size = np.zeros(cells.num_rows, dtype=np.int64), 1
    for column in columns.tolist():
        values = len(cells.lengths[column]) + 1
        if (size * values).bit_length() > KEY_BITS:
            break
        keys = keys * values + cells.codes[:, column] + 1
        size *= values
    return stable_order(keys, size)


def _groups(cells: Cells, dependencies: npt.NDArray[np.bool_]) -> Indices:
    """The group of each row, [rows]: rows that hold one cell in common, or a single row, named by the first of them."""
    sizes = np.array([len(lengths) + 1 for lengths in cells.lengths])  # ids of a column, the first for NULL
    firsts = (1 + np.cumsum(sizes) - sizes).astype(np.int32)
    weights = np.zeros(int(sizes.sum()) + 1)
    for column, leader in enumerate(equivalent_columns(dependencies).tolist()):
        weights[firsts[leader] : firsts[leader] + sizes[leader]] += _lengths_by(cells, leader, column)
    groups = np.arange(cells.num_rows, dtype=np.int32)
    rows = groups.copy()
    while len(rows):
        columns = (cells.codes[rows, column] + (firsts[column] + 1) for column in range(cells.num_columns))
        liked, _ = favourites(columns, weights, len(rows), len(rows) if len(rows) == cells.num_rows else 0)
        taken = (np.bincount(liked, minlength=len(weights)) > 1)[liked] & (liked > 0)
        if not taken.any():
            break
        first = first_equal(liked[taken].astype(np.int64), len(weights))
        groups[rows[taken]] = rows[taken][first]
        rows = rows[~taken]
    return groups


def _lengths_by(cells: Cells, leader: int, column: int) -> Ints:
    """Lengths of the cells of a column by the codes of an equivalent one, the first for NULL.

    The last row that has a code speaks for all, since they agree.
    """
    lengths = np.zeros(len(cells.lengths[leader]) + 1, dtype=np.int64)
    lengths[cells.codes[:, leader] + 1] = np.append(0, cells.lengths[column])[cells.codes[:, column] + 1]
    return lengths
