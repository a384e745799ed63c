"""One field order for all rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .statistics import column_statistics

Fields = npt.NDArray[np.int32]


def given_fields(cells: Cells) -> Fields:
    """The columns as they stand in the table, int32 [rows, columns]."""
    return _for_all_rows(np.arange(cells.num_columns), cells.num_rows)


def fixed_fields(cells: Cells) -> Fields:
    """The columns by falling statistics score (arXiv:2403.05821, authors' code), int32 [rows, columns]."""
    scores = np.array([column.score for column in column_statistics(cells)])
    return _for_all_rows(np.argsort(-scores, kind="stable"), cells.num_rows)


def _for_all_rows(columns: npt.NDArray[np.integer], num_rows: int) -> Fields:
    return np.tile(columns.astype(np.int32), (num_rows, 1))
