"""Reordering: which row comes when, and which field stands where in it, so that prompts share prefixes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .cell_order import SharedUnits, shared_units, text_order
from .cells import Cells, as_cells
from .deduplication import Deduplication, deduplicate
from .dependencies import equivalent_names, find_dependencies, given_dependencies
from .errors import OptimizerError
from .finite_cache import finite_cache_hits
from .fixed import Fields, fixed_fields, given_fields
from .ggr import ggr_fields
from .ophr import ophr_fields
from .ordering import Ordering, OrderingStats
from .prefix_tree import depth_first
from .reorder_lists import reorder_lists
from .tree import tree_fields

METHODS = ("auto", "none", "sort", "fixed", "ggr", "ophr", "tree")
Ints = npt.NDArray[np.int64]


def reorder(
    table: pa.Table | Cells,
    *,
    method: str = "auto",
    dependencies: Sequence[tuple[str, str]] | None = None,
    unordered: Sequence[str] = (),
    capacity: int | None = None,
    seed: int = 0,
) -> Ordering:
    """Order the rows and, per row, the fields of a table; `auto` takes the best of the other methods.

    `none` keeps everything, `sort` sorts rows by the columns as given, `fixed` does so with columns by statistics,
    `tree` chooses the fields of each row by growing a prefix tree. Rows always come depth-first, equal rows together.
    Columns that determine others may be given as `dependencies`, pairs of names that are trusted, else they
    are found. The items of `unordered` list fields may change places too, see `Ordering.items` and `arrange_items`.
    With a `capacity` in units of the cells, the figures are for a cache of that size and the rows that fit into it.
    Raises OptimizerError for an unknown method, an unordered field that is no list, or a table that cannot be encoded.
    """
    started = time.perf_counter()
    if capacity is not None and unordered:
        raise OptimizerError("capacity together with unordered fields is not available in this version; leave one out")
    if method not in METHODS:
        raise OptimizerError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if unordered and method != "none":
        if isinstance(table, Cells):
            raise OptimizerError("unordered fields need the table itself; encoded cells no longer tell items apart")
        inner = partial(_reorder, method=method, dependencies=dependencies, seed=seed)
        ordering = reorder_lists(table, list(unordered), inner, sharing=method in ("auto", "tree"))
    else:
        cells = as_cells(table)
        ordering = _reorder(cells, method=method, dependencies=dependencies, seed=seed)
        if capacity is not None:
            ordering = _with_capacity(cells, ordering, capacity)
    return replace(ordering, stats=replace(ordering.stats, seconds=time.perf_counter() - started))


def _reorder(cells: Cells, *, method: str, dependencies: Sequence[tuple[str, str]] | None, seed: int) -> Ordering:
    duplicates = deduplicate(cells)
    distinct = cells.select_rows(duplicates.first)
    if dependencies is not None:
        known = given_dependencies(cells.names, dependencies)
    elif method in ("auto", "ggr", "tree"):
        known = find_dependencies(distinct)
    else:
        known = np.eye(cells.num_columns, dtype=bool)
    candidates = _candidates(method, known, seed)
    order = text_order(distinct)
    found: dict[str, SharedUnits] = {}
    best: tuple[str, Fields, Ints] | None = None
    for name in candidates:
        fields = candidates[name](distinct)
        sequences = order.sequences(distinct, fields)
        found[name] = shared_units(sequences, order)
        if best is None or found[name].total > found[best[0]].total:
            best = (name, fields, sequences)
    assert best is not None
    chosen, fields, sequences = best
    rows, shown_fields = _all_rows(duplicates, fields, None if chosen == "none" else depth_first(sequences))
    units = int(cells.id_lengths[cells.ids].sum())
    repeated = units - int(cells.id_lengths[distinct.ids].sum())  # later copies of a row are hits from end to end
    stats = OrderingStats(
        method=method,
        chosen=chosen,
        num_rows=cells.num_rows,
        num_distinct=duplicates.num_distinct,
        num_columns=cells.num_columns,
        units=units,
        hit_units=found[chosen].whole + repeated,
        partial_units=found[chosen].partial,
        unit=cells.unit,
        seconds=0.0,
        equivalent=equivalent_names(distinct, known),
        candidates={name: shared.total + repeated for name, shared in found.items()},
    )
    return Ordering(rows, shown_fields, stats)


def _with_capacity(cells: Cells, ordering: Ordering, capacity: int) -> Ordering:
    found = finite_cache_hits(cells, ordering, capacity)
    stats = replace(
        ordering.stats,
        units=found.units_total,
        hit_units=found.units_hit,
        partial_units=0,
        rows_too_long=found.rows_too_long,
        candidates={} if found.rows_too_long else ordering.stats.candidates,  # those counted all rows
    )
    return replace(ordering, stats=stats)


def _candidates(method: str, known: npt.NDArray[np.bool_], seed: int) -> dict[str, Callable[[Cells], Fields]]:
    methods: dict[str, Callable[[Cells], Fields]] = {
        "none": given_fields,
        "sort": given_fields,
        "fixed": fixed_fields,
        "ggr": lambda cells: ggr_fields(cells, known),
        "tree": lambda cells: tree_fields(cells, known, seed),
        "ophr": ophr_fields,
    }
    # the first of equals wins, so the simplest come first; "none" never beats "sort"
    chosen = ("sort", "fixed", "ggr", "tree") if method == "auto" else (method,)
    return {name: methods[name] for name in chosen}


def _all_rows(duplicates: Deduplication, fields: Fields, order: Ints | None) -> tuple[Ints, Fields]:
    """Rows and fields of all shown rows, from fields of the distinct rows and their order (None: as in the table)."""
    inverse = duplicates.inverse
    if order is None:
        return np.arange(len(inverse)), fields[inverse]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.argsort(place[inverse], kind="stable")
    return rows, fields[inverse[rows]]
