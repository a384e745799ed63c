"""Reordering: which row comes when, and which field stands where in it, so that prompts share prefixes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .candidates import compare_methods
from .capacity import reorder_within
from .cells import Cells, as_cells
from .deduplication import Deduplication, deduplicate
from .dependencies import Given
from .errors import OptimizerError
from .fixed import Fields
from .grouping import Indices, Ints, stable_order
from .ordering import Ordering, OrderingStats
from .reorder_lists import reorder_lists
from .working_memory import part_cells

METHODS = ("auto", "none", "sort", "fixed", "ggr", "ophr", "tree")


def reorder(
    table: pa.Table | Cells,
    *,
    method: str = "auto",
    dependencies: Sequence[Given] | None = None,
    tolerance: float = 0.0,
    unordered: Sequence[str] = (),
    capacity: int | None = None,
    working_memory: int | None = None,
    seed: int = 0,
) -> Ordering:
    """Order the rows and, per row, the fields of a table; `auto` takes the best of the other methods.

    `none` keeps everything, `sort` sorts rows by the columns as given, `fixed` does so with columns by statistics,
    `tree` chooses the fields of each row by growing a prefix tree. Rows always come depth-first, equal rows together,
    and where rows part, cells that begin alike are neighbours.

    Columns that determine others may be given as `dependencies`: pairs of names, see `given_dependencies`, that are
    trusted and not checked; else the exact ones are found. With a `tolerance`, a share of rows, those that all but so
    many rows keep to are found as well, and used where that counts more hits.

    The items of `unordered` list fields may change places too, see `Ordering.items` and `arrange_items`.
    With a `capacity` in units of the cells, rows that do not fit into a cache of that size by themselves come last and
    are left out of the figures, and the best order for the others is chosen.

    Large tables are planned in parts, see `cut_table`, and counted in whole. `working_memory` bytes bound what a part
    takes on top of the encoded table and about 60 bytes per row; a quarter of the free memory when None, which makes a
    difference only below 100 MiB. For tables that do not fit into memory see `reorder_batches`.

    Raises OptimizerError for an unknown method, an unordered field that is no list, a capacity, working memory or
    tolerance out of range, or a table that cannot be encoded.
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise OptimizerError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if unordered and isinstance(table, Cells):
        raise OptimizerError("unordered fields need the table itself; encoded cells no longer tell items apart")
    part_cells(working_memory)  # says what is wrong with it also where nothing is planned
    run = partial(
        _reorder,
        method=method,
        dependencies=dependencies,
        tolerance=tolerance,
        seed=seed,
        working_memory=working_memory,
    )
    if unordered and method != "none":
        run = partial(reorder_lists, names=list(unordered), reorder=run, sharing=method in ("auto", "tree"))
    if capacity is None:
        ordering = run(table)
    else:
        source = table if unordered else as_cells(table)
        ordering = reorder_within(capacity, source, run, keep_rows=method == "none")
    return replace(ordering, stats=replace(ordering.stats, seconds=time.perf_counter() - started))


def _reorder(
    table: pa.Table | Cells,
    *,
    method: str,
    dependencies: Sequence[Given] | None,
    tolerance: float,
    seed: int,
    working_memory: int | None,
) -> Ordering:
    cells = as_cells(table)
    duplicates = deduplicate(cells)
    distinct = cells.select_rows(duplicates.first)
    found = compare_methods(
        distinct,
        method,
        dependencies=dependencies,
        tolerance=tolerance,
        seed=seed,
        working_memory=working_memory,
    )
    best = found.best
    rows, fields = _all_rows(duplicates, best.fields, None if method == "none" else best.rows)
    units = cells.total_length
    repeated = units - distinct.total_length  # later copies of a row are hits from end to end
    stats = OrderingStats(
        method=method,
        chosen=best.method,
        num_rows=cells.num_rows,
        num_distinct=duplicates.num_distinct,
        num_columns=cells.num_columns,
        units=units,
        hit_units=best.shared.whole + repeated,
        partial_units=best.shared.partial,
        unit=cells.unit,
        seconds=0.0,
        dependencies=found.dependencies,
        candidates={name: shared.total + repeated for name, shared in found.shared.items()},
        candidate_seconds=found.seconds,
    )
    return Ordering(rows, fields, stats)


def _all_rows(duplicates: Deduplication, fields: Fields, order: Indices | None) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Rows and fields of all shown rows, from fields of the distinct rows and their order (None: as in the table)."""
    inverse = duplicates.inverse
    if order is None:
        return np.arange(len(inverse)), fields[inverse].astype(np.int32)
    if len(order) == len(inverse):
        return order.astype(np.int64), fields[order].astype(np.int32)
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    rows = stable_order(place[inverse], len(order))
    return rows.astype(np.int64), fields[inverse[rows]].astype(np.int32)
