"""Reordering of tables with list fields whose items may be shown in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .cell_order import SharedUnits, shared_units
from .cells import Cells, encode
from .fixed import given_fields
from .grouping import Ints
from .item_trees import align_items, shared_order
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

    Lists of the same items read the same. With `sharing`, items are also put so that rows begin with those that they
    share, and each list is put before or behind other fields where that saves more, see `place_list`.
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
    best = _candidate(base.stats.chosen, pieces, lists, fields, orders)
    if base.stats.method == "auto" and none.shared.total > best.shared.total:
        best = replace(none, name="sort")
    hits = {**base.stats.candidates, "none": none.shared.total}
    waiting = _heaviest(lists) if sharing else []
    while waiting:
        column, placed = max(
            ((column, _best_place(best, pieces, lists, column, hits)) for column in waiting),
            key=lambda found: found[1].shared.total,
        )
        if placed.shared.total <= best.shared.total:
            break
        best = placed
        waiting.remove(column)
    rows = depth_first(best.sequences)
    stats = replace(
        base.stats,
        chosen=best.name,
        hit_units=best.shared.whole,
        partial_units=best.shared.partial,
        candidates=hits,
    )
    shown = {cells.names[column]: order[rows] for column, order in best.orders.items()}
    return Ordering(rows, best.fields[rows].astype(np.int32), stats, shown)


def _best_place(
    start: _Candidate, pieces: Pieces, lists: Mapping[int, ItemLists], column: int, hits: dict[str, int]
) -> _Candidate:
    """The best of the ways to place one more list; `hits` gets what each of them finds.

    They are compared with items in a quick order; the best one gets a better one.
    """
    items, aligned = lists[column], align_items(lists[column])
    best, best_homes = start, None
    for name, fields, homes in place_list(pieces, start.fields, _shown_ids(lists, start.orders), column, items):
        order = shared_order(items, aligned, homes, relocations=0)
        one = _candidate(name, pieces, lists, fields, {**start.orders, column: order})
        hits[name] = max(one.shared.total, hits.get(name, 0))
        if one.shared.total > best.shared.total:
            best, best_homes = one, homes
    if best_homes is not None:
        orders = {**best.orders, column: shared_order(items, aligned, best_homes)}
        best = max(best, _candidate(best.name, pieces, lists, best.fields, orders), key=lambda one: one.shared.total)
        hits[best.name] = max(best.shared.total, hits[best.name])
    return best


def _candidate(
    name: str, pieces: Pieces, lists: Mapping[int, ItemLists], fields: Ints, orders: Mapping[int, Ints]
) -> _Candidate:
    sequences, _ = pieces.sequences(fields, _shown_ids(lists, orders))
    return _Candidate(name, fields, orders, sequences, shared_units(sequences, pieces.order))


def _shown_ids(lists: Mapping[int, ItemLists], orders: Mapping[int, Ints]) -> dict[int, Ints]:
    return {column: arranged_ids(items, orders[column]) for column, items in lists.items()}


def _heaviest(lists: Mapping[int, ItemLists]) -> list[int]:
    """The list columns whose items are worth most to share."""
    worth = {}
    for column, items in lists.items():
        uses = np.bincount(items.ids.ravel(), minlength=len(items.lengths))
        worth[column] = int(np.maximum(uses - 1, 0) @ items.lengths)
    return sorted(worth, key=lambda column: -worth[column])[:MAX_LISTS]
