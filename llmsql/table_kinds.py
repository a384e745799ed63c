"""The kinds of tables that Python programs hold: as Arrow, and changed back. Neither pandas nor polars is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from llmsql.errors import SettingError
from llmsql.scan import run_with_variables

KINDS = "an Arrow table, record batch or reader, a pandas or polars frame, or a DuckDB relation"


class TableKind(Protocol):
    """One table, of its own kind."""

    names: list[str]

    def fields(self, names: Sequence[str]) -> pa.Table:
        """Some of its columns as Arrow."""

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> Any:
        """A table of this kind with the rows where `rows`, bool [rows], is true, and all or some of its columns."""

    def with_column(self, name: str, values: pa.Array) -> Any:
        """A table of this kind with one more column, or another one in its place."""


def table_kind(table: Any) -> TableKind:
    """The kind of a table.

    Raises:
        SettingError: it is no table that is known.
    """
    if isinstance(table, pa.Table):
        return ArrowTable(table)
    if isinstance(table, pa.RecordBatch):
        return ArrowBatch(table)
    pandas, polars, duckdb = (sys.modules.get(name) for name in ("pandas", "polars", "duckdb"))
    if pandas is not None and isinstance(table, pandas.DataFrame):
        return PandasFrame(table)
    if polars is not None and isinstance(table, polars.DataFrame):
        return PolarsFrame(table)
    if polars is not None and isinstance(table, polars.LazyFrame):
        return PolarsFrame(table.collect(), lazy=True)
    if duckdb is not None and isinstance(table, duckdb.DuckDBPyRelation):
        return DuckDBRelation(table)
    raise SettingError(f"the table must be {KINDS}, not {type(table).__name__}")


class ArrowTable:
    """A `pyarrow.Table`."""

    def __init__(self, table: pa.Table):
        self._table = table
        self.names: list[str] = table.column_names

    def fields(self, names: Sequence[str]) -> pa.Table:
        """See `TableKind`."""
        return self._table.select(list(names))

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
        """See `TableKind`."""
        kept = self._table.filter(pa.array(rows))
        return kept if names is None else kept.select(list(names))

    def with_column(self, name: str, values: pa.Array) -> pa.Table:
        """See `TableKind`."""
        if name in self.names:
            return self._table.set_column(self.names.index(name), name, values)
        return self._table.append_column(name, values)


class ArrowBatch(ArrowTable):
    """A `pyarrow.RecordBatch`."""

    def __init__(self, batch: pa.RecordBatch):
        super().__init__(pa.Table.from_batches([batch]))

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """See `TableKind`."""
        return _batch(super().kept(rows, names))

    def with_column(self, name: str, values: pa.Array) -> pa.RecordBatch:
        """See `TableKind`."""
        return _batch(super().with_column(name, values))


class PandasFrame:
    """A pandas frame; its index stays."""

    def __init__(self, frame: Any):
        self._frame = frame
        self.names: list[str] = [str(name) for name in frame.columns]

    def fields(self, names: Sequence[str]) -> pa.Table:
        """See `TableKind`."""
        places = [self.names.index(name) for name in names]
        chosen = self._frame.iloc[:, places].set_axis(list(names), axis=1)
        return pa.Table.from_pandas(chosen, preserve_index=False)

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> Any:
        """See `TableKind`."""
        kept = self._frame[rows]
        return kept if names is None else kept.iloc[:, [self.names.index(name) for name in names]]

    def with_column(self, name: str, values: pa.Array) -> Any:
        """See `TableKind`."""
        made = values.to_pandas()
        if values.null_count and made.dtype != object:  # whole numbers and NULLs are no floats
            made = sys.modules["pandas"].Series(values.to_pylist(), dtype=object)
        made.index = self._frame.index
        return self._frame.assign(**{name: made})


class PolarsFrame:
    """A polars frame; a lazy one is collected."""

    def __init__(self, frame: Any, *, lazy: bool = False):
        self._frame = frame
        self._lazy = lazy
        self.names: list[str] = frame.columns

    def fields(self, names: Sequence[str]) -> pa.Table:
        """See `TableKind`."""
        return self._frame.select(list(names)).to_arrow()

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> Any:
        """See `TableKind`."""
        kept = self._frame.filter(sys.modules["polars"].Series(rows))
        return self._given(kept if names is None else kept.select(list(names)))

    def with_column(self, name: str, values: pa.Array) -> Any:
        """See `TableKind`."""
        return self._given(self._frame.with_columns(sys.modules["polars"].from_arrow(values).alias(name)))

    def _given(self, frame: Any) -> Any:
        return frame.lazy() if self._lazy else frame


class DuckDBRelation(ArrowTable):
    """A relation of DuckDB, which is read once; the result is a relation on the same connection."""

    def __init__(self, relation: Any):
        super().__init__(relation.to_arrow_table())
        self._relation = relation

    def kept(self, rows: np.ndarray, names: Sequence[str] | None = None) -> Any:
        """See `TableKind`."""
        return self._given(super().kept(rows, names))

    def with_column(self, name: str, values: pa.Array) -> Any:
        """See `TableKind`."""
        return self._given(super().with_column(name, values))

    def _given(self, table: pa.Table) -> Any:
        sql = "FROM __llmsql_result"
        return run_with_variables(partial(self._relation.query, "__llmsql_input", sql), {"__llmsql_result": table})


def _batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
