"""Cell encoding: a table becomes integer codes and, per column, the distinct rendered cells that they index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .column_encoding import encode_column
from .errors import OptimizerError
from .literals import TEXT, quote_name
from .sorted_texts import SortedTexts

Codes = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """A table as its distinct rendered cells; made by `encode`.

    A cell's text is `"name": <json value>,` and a newline. NULL has code -1 and the empty text, in every column.
    """

    names: tuple[str, ...]
    codes: Codes  # [rows, columns], -1 is NULL
    texts: tuple[pa.Array, ...]  # per column large_string [distinct], each used by at least one row
    lengths: tuple[Lengths, ...]  # per column int64 [distinct], characters unless `with_lengths` gave others
    unit: str = "characters"
    _sorted_texts: dict[int, SortedTexts] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.codes.shape[0])

    @property
    def num_columns(self) -> int:
        """Number of columns."""
        return int(self.codes.shape[1])

    @cached_property
    def offsets(self) -> Lengths:
        """First global cell id of each column, int64 [columns + 1]; global id 0 is NULL."""
        return np.concatenate([[1], 1 + np.cumsum([len(texts) for texts in self.texts])]).astype(np.int64)

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """Global cell ids [rows, columns]: column offset + code, 0 for NULL. Made anew each time, as it is large."""
        ids = self.codes + self.offsets[:-1].astype(np.int32)
        ids[self.codes < 0] = 0
        return ids

    @cached_property
    def has_null(self) -> bool:
        """Whether some cell is NULL."""
        return bool(self.codes.size) and int(self.codes.min()) < 0

    @property
    def total_length(self) -> int:
        """Length of all cells of all rows together."""
        total = 0
        for column, lengths in enumerate(self.lengths):
            counts = np.bincount(self.codes[:, column] + 1, minlength=len(lengths) + 1)
            total += int(counts[1:] @ lengths)
        return total

    @cached_property
    def id_lengths(self) -> Lengths:
        """Length of each global cell id, int64 [distinct cells + 1]; 0 for NULL."""
        return np.concatenate([np.zeros(1, dtype=np.int64), *self.lengths])

    @cached_property
    def id_texts(self) -> pa.Array:
        """Text of each global cell id, large_string [distinct cells + 1]; empty for NULL."""
        return pa.concat_arrays([pa.array([""], TEXT), *self.texts])

    def sorted_texts(self, column: int) -> SortedTexts:
        """The distinct texts of a column by rank; made once for all `Cells` that have the same texts."""
        if column not in self._sorted_texts:
            self._sorted_texts[column] = SortedTexts(self.texts[column], quote_name(self.names[column]) + ": ")
        return self._sorted_texts[column]

    def with_lengths(self, lengths: Sequence[npt.ArrayLike], unit: str = "tokens") -> Cells:
        """The same cells measured otherwise: per column one length per distinct cell, e.g. token counts.

        Raises OptimizerError when the shapes do not fit or a length is negative.
        """
        arrays = tuple(np.asarray(column, dtype=np.int64) for column in lengths)
        wanted = [len(texts) for texts in self.texts]
        if [array.shape for array in arrays] != [(count,) for count in wanted]:
            given = [array.shape for array in arrays]
            raise OptimizerError(f"lengths must be one array per column with {wanted} entries, got shapes {given}")
        if any(len(array) and int(array.min()) < 0 for array in arrays):
            raise OptimizerError("lengths of cells must not be negative")
        return replace(self, lengths=arrays, unit=unit)

    def select_rows(self, rows: npt.NDArray[np.integer]) -> Cells:
        """The cells of some rows; the distinct texts stay as they are, so codes keep their meaning."""
        if len(rows) == self.num_rows and np.array_equal(rows, np.arange(self.num_rows)):
            return self
        codes = np.empty((len(rows), self.num_columns), dtype=np.int32, order="F")
        for column in range(self.num_columns):
            np.take(self.codes[:, column], rows, out=codes[:, column])
        return replace(self, codes=codes)


def encode(table: pa.Table) -> Cells:
    """Render and number the distinct cells of a table, column by column, in order of first occurrence.

    Raises OptimizerError for a value whose Arrow type has no canonical text.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    codes = np.empty((table.num_rows, table.num_columns), dtype=np.int32, order="F")
    all_texts, all_lengths = [], []
    for position, name in enumerate(table.column_names):
        try:
            values = encode_column(table.column(position), codes[:, position])
        except OptimizerError as error:
            raise OptimizerError(f"column {name!r}: {error}") from None
        head = pa.scalar(quote_name(name) + ": ", TEXT)
        texts = pc.binary_join_element_wise(head, values, pa.scalar(",\n", TEXT), pa.scalar("", TEXT))
        all_texts.append(texts)
        all_lengths.append(pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
    return Cells(tuple(table.column_names), codes, tuple(all_texts), tuple(all_lengths))


def as_cells(table: pa.Table | Cells) -> Cells:
    """`table` itself when it is encoded already, else its encoding. Raises OptimizerError for anything else."""
    if isinstance(table, Cells):
        return table
    if isinstance(table, pa.Table | pa.RecordBatch):
        return encode(table)
    raise OptimizerError(
        f"expected a pyarrow Table or Cells, got {type(table).__name__}; convert with pyarrow.table(...)"
    )
