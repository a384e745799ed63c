"""List fields whose items may be shown in any order, as retrieval results may: rows share the items they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import OptimizerError
from .grouping import Ints
from .literals import TEXT
from .ordering import Ordering
from .rendering import is_list, render_values

SEPARATOR_LENGTH = len(", ")


@dataclass(frozen=True)
class ItemLists:
    """The items of one list column as codes; the same text is the same item wherever it stands."""

    ids: Ints  # [rows, most items] from 1 on, 0 where a list has ended
    texts: pa.Array  # large_string [distinct items] of ids 1, 2, ...
    lengths: Ints  # [distinct items + 1] characters with the separator; 0 for id 0


def read_items(table: pa.Table, names: Sequence[str]) -> dict[int, ItemLists]:
    """The items of the named list columns by column number.

    Raises OptimizerError for a name that is no column, or stands for several, and for a column that holds no lists.
    """
    found = {}
    for name in names:
        if table.column_names.count(name) != 1:
            raise OptimizerError(f"unordered field {name!r} is not one of the columns {', '.join(table.column_names)}")
        column = table.column_names.index(name)
        if not is_list(table.schema.field(column).type):
            raise OptimizerError(f"unordered field {name!r} has type {table.schema.field(column).type}, not a list")
        found[column] = _encode_items(table.column(column))
    return found


def _encode_items(values: pa.ChunkedArray) -> ItemLists:
    counts = _item_counts(values)
    items = [render_values(chunk.flatten()) for chunk in values.chunks]
    encoded = _one_array(pa.chunked_array(items, TEXT)).fill_null("null").dictionary_encode()
    ids = np.zeros((len(counts), int(counts.max(initial=0))), dtype=np.int64)
    ids[_places(counts, ids.shape[1])] = encoded.indices.to_numpy() + 1
    texts = pc.utf8_length(encoded.dictionary).to_numpy(zero_copy_only=False).astype(np.int64)
    return ItemLists(ids, encoded.dictionary, np.concatenate([[0], texts + SEPARATOR_LENGTH]))


def _item_counts(values: pa.ChunkedArray) -> Ints:
    counts: Ints = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
    return counts


def _one_array(values: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _places(counts: Ints, width: int) -> npt.NDArray[np.bool_]:
    return np.arange(width) < counts[:, None]


def common_order(items: ItemLists) -> Ints:
    """Positions of items [rows, most items] so that lists of the same items read the same; the frequent come first."""
    frequency = np.bincount(items.ids.ravel(), minlength=len(items.lengths))
    rank = np.empty(len(frequency), dtype=np.int64)
    rank[np.lexsort((np.arange(len(frequency)), -frequency))] = np.arange(len(frequency))
    return np.argsort(np.where(items.ids > 0, rank[items.ids], len(rank)), axis=1, kind="stable")


def arranged_ids(items: ItemLists, order: Ints) -> Ints:
    """Item ids [rows, most items] in the order in which they are shown."""
    ids: Ints = np.take_along_axis(items.ids, order, axis=1)
    return ids


def arrange_items(table: pa.Table, ordering: Ordering) -> pa.Table:
    """The table, its rows as they were, with the items of unordered lists as the ordering shows them.

    Raises OptimizerError when the ordering belongs to another table.
    """
    for name, shown in ordering.items.items():
        if name not in table.column_names or len(shown) != table.num_rows:
            raise OptimizerError(
                f"the ordering is for {len(shown)} rows with a list {name!r}, "
                f"the table has {table.num_rows} rows and columns {', '.join(table.column_names)}"
            )
        order = np.empty_like(shown)
        order[ordering.rows] = shown
        table = permute_items(table, table.column_names.index(name), order)
    return table


def permute_items(table: pa.Table, column: int, order: Ints) -> pa.Table:
    """The table with the items of each list of a column as `order` [rows, most items] says, by position."""
    values = table.column(column)
    counts = _item_counts(values)
    starts = np.cumsum(counts) - counts
    places = (starts[:, None] + order)[_places(counts, order.shape[1])]
    items = pa.chunked_array([chunk.flatten() for chunk in values.chunks], values.type.value_type)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    items = _one_array(items.take(pa.array(places)))
    lists = pa.LargeListArray.from_arrays(offsets, items, mask=_one_array(values.is_null()))
    return table.set_column(column, table.column_names[column], lists)
