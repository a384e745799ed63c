"""Greedy group recursion, Algorithm 1 of arXiv:2403.05821, for comparison.

Two misprints are mended: inferred lengths are squared as the chosen one is (line 6), and the group comes before the
rest of the rows, with its inferred values (line 29). Depth limits and early stop are those of the experiments there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .dependencies import find_dependencies
from .fixed import Fields, columns_by_score, same_fields
from .grouping import Indices, Ints
from .statistics import column_statistics

ROW_DEPTH = 4
COLUMN_DEPTH = 2
EARLY_STOP = 100_000
DISTINCT_SHARE = 0.7


def ggr_fields(
    cells: Cells,
    dependencies: npt.NDArray[np.bool_] | None = None,
    *,
    row_depth: int = ROW_DEPTH,
    column_depth: int = COLUMN_DEPTH,
    early_stop: int = EARLY_STOP,
    distinct_share: float = DISTINCT_SHARE,
) -> Fields:
    """For each row its columns in prompt order, [rows, columns].

    The value with the largest hit count, length squared times further rows, splits the rows; what its column and
    others determine each way (`dependencies` bool [columns, columns], found when None) follows it at once. Beyond the
    depths, or below `early_stop` hits, the columns left stand in order of their statistics. As in the authors' code,
    columns with more than `distinct_share` distinct values per row take no part and stand last.
    """
    determines = find_dependencies(cells) if dependencies is None else dependencies
    partners = determines & determines.T & ~np.eye(cells.num_columns, dtype=bool)
    distinct = np.array([column.num_distinct for column in column_statistics(cells)], dtype=np.int64)
    repeats = distinct <= distinct_share * cells.num_rows
    fields = same_fields(np.argsort(~repeats, kind="stable"), cells.num_rows).copy()
    work = [(np.arange(cells.num_rows, dtype=np.int32), np.flatnonzero(repeats), 0, 0)]
    while work:
        rows, columns, row_level, column_level = work.pop()
        placed = int(repeats.sum()) - len(columns)
        best = None
        if len(rows) > 1 and len(columns) > 1 and row_level < row_depth and column_level < column_depth:
            best = _best_value(cells, partners, rows, columns)
        if best is None or best[0] < early_stop:
            fields[rows, placed : placed + len(columns)] = columns_by_score(cells, rows, columns)
            continue
        _, column, code = best
        chosen = np.concatenate([[column], columns[partners[column, columns]]])
        holds = cells.codes[rows, column] == code
        fields[rows[holds], placed : placed + len(chosen)] = chosen
        work.append((rows[holds], columns[~np.isin(columns, chosen)], row_level, column_level + 1))
        work.append((rows[~holds], columns, row_level + 1, column_level))
    return fields


def _best_value(
    cells: Cells, partners: npt.NDArray[np.bool_], rows: Indices, columns: Ints
) -> tuple[float, int, int] | None:
    """Hit count, column and code of the value worth most among the rows; None when no cell is filled."""
    best = None
    for column in columns.tolist():
        codes = cells.codes[rows, column] + 1  # 0 is NULL
        worth = np.append(0.0, cells.lengths[column].astype(np.float64) ** 2)
        counts = np.bincount(codes, minlength=len(worth))
        for partner in columns[partners[column, columns]].tolist():
            squares = np.append(0.0, cells.lengths[partner].astype(np.float64) ** 2)
            sums = np.bincount(codes, squares[cells.codes[rows, partner] + 1], len(worth))
            worth += sums / np.maximum(counts, 1)
        hits = worth * np.maximum(counts - 1, 0)
        if len(hits) == 1:
            continue
        code = int(hits[1:].argmax())
        if best is None or hits[code + 1] > best[0]:
            best = (float(hits[code + 1]), column, code)
    return best
