"""The cells of some rows numbered densely, which is what clustering works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .dependencies import equivalent_columns
from .grouping import AnyInts, Indices, Ints

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Numbering:
    """Ids of cells; those of column c are `firsts[c]` to `firsts[c + 1] - 1`, the first of them for NULL.

    Id 0 is no cell. NULL takes no room, but where it stands should be the same for rows that stand together.
    """

    ids: Indices  # [rows, columns], rows one after the other in memory
    firsts: Ints  # [columns + 1]
    codes: Indices  # [ids] the code of each id in its column, -1 for NULL
    lengths: Ints  # [ids]


def number(cells: Cells, rows: AnyInts | None = None) -> Numbering:
    """Number the cells of some rows (all when None); ids of a column are in ascending order of their codes."""
    num_rows = cells.num_rows if rows is None else len(rows)
    ids = np.empty((num_rows, cells.num_columns), dtype=np.int32)
    firsts, all_codes, all_lengths = [1], [np.zeros(1, dtype=np.int32)], [np.zeros(1, dtype=np.int64)]
    for column, lengths in enumerate(cells.lengths):
        codes = cells.codes[:, column] if rows is None else cells.codes[rows, column]
        place = np.full(len(lengths) + 1, -1, dtype=np.int32)  # the last entry stands for code -1
        place[codes] = 0
        used = np.flatnonzero(place[:-1] == 0).astype(np.int32)
        place[used] = firsts[-1] + 1 + np.arange(len(used), dtype=np.int32)
        place[-1] = firsts[-1]
        ids[:, column] = place[codes]
        firsts.append(firsts[-1] + 1 + len(used))
        all_codes += [np.full(1, -1, dtype=np.int32), used]
        all_lengths += [np.zeros(1, dtype=np.int64), lengths[used]]
    return Numbering(ids, np.array(firsts), np.concatenate(all_codes), np.concatenate(all_lengths))


def merged_lengths(numbering: Numbering, dependencies: npt.NDArray[np.bool_]) -> Floats:
    """Lengths [ids], but those of equivalent columns count where the first of them stands, on average over its rows."""
    merged = numbering.lengths.astype(np.float64)
    for column, first in enumerate(equivalent_columns(dependencies)):
        if column == first:
            continue
        begin, end = numbering.firsts[first : first + 2]
        places = numbering.ids[:, first] - begin
        sums = np.bincount(places, numbering.lengths[numbering.ids[:, column]], end - begin)
        merged[begin:end] += sums / np.maximum(np.bincount(places, minlength=end - begin), 1)
        merged[numbering.firsts[column] : numbering.firsts[column + 1]] = 0
    return merged
