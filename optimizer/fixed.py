"""One field order for all rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .grouping import Ints
from .statistics import column_statistics

Fields = npt.NDArray[np.int32]


def given_fields(cells: Cells) -> Fields:
    """The columns as they stand in the table, int32 [rows, columns]."""
    return np.tile(np.arange(cells.num_columns, dtype=np.int32), (cells.num_rows, 1))


def fixed_fields(cells: Cells) -> Fields:
    """The columns by falling statistics score (arXiv:2403.05821, authors' code), int32 [rows, columns]."""
    columns = columns_by_score(cells, np.arange(cells.num_rows), np.arange(cells.num_columns))
    return np.tile(columns.astype(np.int32), (cells.num_rows, 1))


def columns_by_score(cells: Cells, rows: Ints, columns: Ints) -> Ints:
    """Some columns by falling statistics score over some rows; equal scores keep their order."""
    scores = np.array([column.score for column in column_statistics(cells, rows, columns)])
    return columns[np.argsort(-scores, kind="stable")]
