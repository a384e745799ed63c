"""One field order for all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .grouping import AnyInts
from .statistics import column_statistics

Fields = npt.NDArray[np.integer[Any]]  # [rows, columns] for each row its columns in prompt order


def field_type(num_columns: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds a column number; there are as many of them as cells."""
    return np.uint8 if num_columns <= 2**8 else np.uint16 if num_columns <= 2**16 else np.uint32


def given_fields(cells: Cells) -> Fields:
    """The columns as they stand in the table, [rows, columns], not to be written to."""
    return same_fields(np.arange(cells.num_columns), cells.num_rows)


def fixed_fields(cells: Cells) -> Fields:
    """The columns by falling statistics score (arXiv:2403.05821, authors' code), like `given_fields`."""
    return same_fields(columns_by_score(cells, None, np.arange(cells.num_columns)), cells.num_rows)


def same_fields(columns: AnyInts, num_rows: int) -> Fields:
    """The same columns for each row, stored once."""
    return np.broadcast_to(columns.astype(field_type(len(columns))), (num_rows, len(columns)))


def columns_by_score(cells: Cells, rows: AnyInts | None, columns: AnyInts) -> AnyInts:
    """Some columns by falling statistics score over some rows (all when None); equal scores keep their order."""
    scores = np.array([column.score for column in column_statistics(cells, rows, columns)])
    return columns[np.argsort(-scores, kind="stable")]
