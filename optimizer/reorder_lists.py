"""Reordering of tables with list fields whose items may be shown in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .cell_order import SharedUnits, shared_units
from .cells import Cells, encode
from .fixed import given_fields
from .grouping import Ints
from .list_places import place_list
from .ordering import Ordering
from .pieces import Pieces, cut_pieces
from .prefix_tree import depth_first
from .unordered import ItemLists, arranged_ids, common_order, permute_items, read_items

MAX_LISTS = 4  # whose place is chosen; those with the longest repeated items


@dataclass(frozen=True)
class _Candidate:
    name: str
    fields: Ints  # [rows, columns] for each table row
    orders: Mapping[int, Ints]  # positions of the items of each list column, [rows, most items]
    sequences: Ints  # [rows, pieces]
    shared: SharedUnits


def reorder_lists(
    table: pa.Table, *, names: list[str], reorder: Callable[[Cells], Ordering], sharing: bool
) -> Ordering:
    """Order rows, fields and the items of the named list fields; `reorder` orders what has no such fields.

    Lists of the same items always read the same. With `sharing`, items are also put so that rows begin with those that
    they share, and each list is put before or behind other fields where that saves more, see `place_list`.
    Raises OptimizerError for a name that is no column of lists.
    """
    lists = read_items(table, names)
    orders = {column: common_order(items) for column, items in lists.items()}
    arranged = table
    for column, order in orders.items():
        arranged = permute_items(arranged, column, order)
    cells = encode(arranged)
    base = reorder(cells)
    if not cells.num_rows:
        return replace(base, items={cells.names[column]: order for column, order in orders.items()})
    fields = np.empty(base.fields.shape, dtype=np.int64)
    fields[base.rows] = base.fields
    pieces = cut_pieces(cells, lists)
    as_given = {column: np.tile(np.arange(items.ids.shape[1]), (len(items.ids), 1)) for column, items in lists.items()}
    none = _candidate("none", pieces, lists, given_fields(cells).astype(np.int64), as_given)
    hits = {**base.stats.candidates, "none": none.shared.total}
    best = _candidate(base.stats.chosen, pieces, lists, fields, orders)
    if base.stats.method == "auto" and none.shared.total > best.shared.total:
        best = replace(none, name="sort")
    waiting = _heaviest(lists) if sharing else []
    while waiting:
        better, placed = best, -1
        for column in waiting:
            for one in _placed(best, pieces, lists, column):
                hits[one.name] = max(one.shared.total, hits.get(one.name, 0))
                if one.shared.total > better.shared.total:
                    better, placed = one, column
        if better is best:
            break
        best = better
        waiting.remove(placed)
    rows = depth_first(best.sequences)
    stats = replace(
        base.stats,
        chosen=best.name,
        hit_units=best.shared.whole,
        partial_units=best.shared.partial,
        candidates=hits,
    )
    items = {cells.names[column]: order[rows] for column, order in best.orders.items()}
    return Ordering(rows, best.fields[rows].astype(np.int32), stats, items)


def _candidate(
    name: str, pieces: Pieces, lists: Mapping[int, ItemLists], fields: Ints, orders: Mapping[int, Ints]
) -> _Candidate:
    sequences, _ = pieces.sequences(fields, _shown_ids(lists, orders))
    return _Candidate(name, fields, orders, sequences, shared_units(sequences, pieces.order))


def _placed(start: _Candidate, pieces: Pieces, lists: Mapping[int, ItemLists], column: int) -> Iterator[_Candidate]:
    ids = _shown_ids(lists, start.orders)
    for name, fields, order in place_list(pieces, start.fields, ids, column, lists[column]):
        yield _candidate(name, pieces, lists, fields, {**start.orders, column: order})


def _shown_ids(lists: Mapping[int, ItemLists], orders: Mapping[int, Ints]) -> dict[int, Ints]:
    return {column: arranged_ids(items, orders[column]) for column, items in lists.items()}


def _heaviest(lists: Mapping[int, ItemLists]) -> list[int]:
    """The list columns whose items are worth most to share."""
    worth = {}
    for column, items in lists.items():
        uses = np.bincount(items.ids.ravel(), minlength=len(items.lengths))
        worth[column] = int(np.maximum(uses - 1, 0) @ items.lengths)
    return sorted(worth, key=lambda column: -worth[column])[:MAX_LISTS]
