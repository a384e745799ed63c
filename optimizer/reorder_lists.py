"""Reordering of tables with list fields whose items may be shown in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .cells import Cells, encode
from .grouping import Ints
from .ordering import Ordering
from .prefix_tree import depth_first, prompt_sequences, walk
from .unordered import arranged_ids, common_order, permute_items, read_items, shared_order


@dataclass(frozen=True)
class _Candidate:
    name: str
    hit_units: int
    fields: Ints  # [rows, columns] for each table row
    sequences: Ints  # [rows, cells and items]
    orders: dict[int, Ints]


def reorder_lists(
    table: pa.Table, *, names: list[str], reorder: Callable[[Cells], Ordering], sharing: bool
) -> Ordering:
    """Order rows, fields and the items of the named list fields; `reorder` orders what has no such fields.

    Lists of the same items always read the same. With `sharing`, one list's items are also put so that rows begin with
    those they share: either that field stands first in every row, or behind what the rows share anyway.
    Raises OptimizerError for a name that is no column of lists.
    """
    lists = read_items(table, names)
    orders = {column: common_order(items) for column, items in lists.items()}
    for column, order in orders.items():
        table = permute_items(table, column, order)
    cells = encode(table)
    base = reorder(cells)
    if not sharing or not cells.num_rows:
        return _with_items(base, table, orders, base.rows)
    fields = np.empty(base.fields.shape, dtype=np.int64)
    fields[base.rows] = base.fields
    best = _Candidate(base.stats.chosen, base.stats.hit_units, fields, prompt_sequences(cells, fields), orders)
    for column, items in lists.items():
        for name, homes, depth in _homes(cells, fields, column):
            order = shared_order(items, homes)
            moved = _moved(fields, column, depth)
            sequences = _item_sequences(cells, moved, column, arranged_ids(items, order))
            hits = _hit_units(sequences, np.concatenate([cells.id_lengths, items.lengths[1:], [0]]))
            if hits > best.hit_units:
                best = _Candidate(name, hits, moved, sequences, {**orders, column: order})
    if best.name == base.stats.chosen:
        return _with_items(base, table, orders, base.rows)
    rows = depth_first(best.sequences)
    candidates = {**base.stats.candidates, best.name: best.hit_units}
    stats = replace(base.stats, chosen=best.name, hit_units=best.hit_units, partial_units=0, candidates=candidates)
    return _with_items(Ordering(rows, best.fields[rows].astype(np.int32), stats), table, best.orders, rows)


def _with_items(ordering: Ordering, table: pa.Table, orders: dict[int, Ints], rows: Ints) -> Ordering:
    return replace(ordering, items={table.column_names[column]: order[rows] for column, order in orders.items()})


def _homes(cells: Cells, fields: Ints, column: int) -> list[tuple[str, Ints, Ints]]:
    """Groups of rows whose lists may share items: all rows, or those that share all other cells they can.

    Each with the number of cells that stand before the list, [rows].
    """
    none = np.zeros(cells.num_rows, dtype=np.int64)
    others = fields[fields != column].reshape(len(fields), -1)
    homes, depth = none.copy(), none.copy()
    num_homes = 1
    sequences = prompt_sequences(cells, others)
    for level in walk(sequences):
        nodes = np.cumsum(level.starts) - 1
        shared = (np.bincount(nodes)[nodes] > 1) & (sequences[level.rows, level.depth] > 0)
        homes[level.rows[shared]] = num_homes + nodes[shared]
        depth[level.rows[shared]] = level.depth + 1
        num_homes += len(level.rows)
    return [("list first", none, none), ("list after shared", homes, depth)]


def _moved(fields: Ints, column: int, depth: Ints) -> Ints:
    """Fields with one column moved behind the first `depth` others of each row."""
    others = fields[fields != column].reshape(len(fields), -1)
    place = np.arange(others.shape[1])
    keys = np.concatenate([place + (place >= depth[:, None]), depth[:, None]], axis=1)
    columns = np.concatenate([others, np.full((len(fields), 1), column)], axis=1)
    return np.take_along_axis(columns, np.argsort(keys, axis=1, kind="stable"), axis=1)


def _item_sequences(cells: Cells, fields: Ints, column: int, item_ids: Ints) -> Ints:
    """Cell ids in prompt order with the items of one list in place of its cell, 0 at the end of shorter rows.

    Items are followed by an id for the end of the list, the one beyond all others; a NULL has no such end.
    """
    end = int(item_ids.max(initial=0)) + 1
    is_list = cells.codes[:, column, None] >= 0
    item_ids = np.concatenate([item_ids, np.zeros_like(is_list, dtype=np.int64)], axis=1)
    np.put_along_axis(item_ids, (item_ids > 0).sum(axis=1)[:, None], np.where(is_list, end, 0), axis=1)
    width = item_ids.shape[1]
    ids = np.take_along_axis(cells.ids, fields, axis=1)
    keys = np.tile(np.arange(cells.num_columns) * (width + 1), (len(ids), 1))
    place = (fields == column).argmax(axis=1)
    items = np.where(item_ids > 0, item_ids + len(cells.id_lengths) - 1, 0)
    np.put_along_axis(ids, place[:, None], 0, axis=1)
    ids = np.concatenate([ids, items], axis=1)
    keys = np.concatenate([keys, place[:, None] * (width + 1) + np.arange(width)], axis=1)
    keys[ids == 0] = cells.num_columns * (width + 1)
    return np.take_along_axis(ids, np.argsort(keys, axis=1, kind="stable"), axis=1)


def _hit_units(sequences: Ints, lengths: Ints) -> int:
    return sum(int(lengths[sequences[level.rows[~level.starts], level.depth]].sum()) for level in walk(sequences))
