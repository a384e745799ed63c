"""Ordering one table after another: each goes on with the prompts that those before have shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .cell_order import CellOrder, text_order
from .cells import Cells, as_cells
from .counting import count_shared
from .earlier_prompts import EarlierPrompts, Hashes, Prompts, cell_hashes
from .errors import OptimizerError
from .fixed import Fields, columns_by_score, same_fields
from .following import following_fields
from .grouping import AnyInts, Indices, Ints
from .ordering import Ordering
from .reorder import reorder
from .table_parts import columns_by_place

FREE_FIELDS = ("auto", "tree")  # the methods that choose the fields of each row
FOLLOWING, ONE_ORDER = "after earlier prompts", "one order of columns"


class PromptMemory:
    """What a prefix cache may hold of the prompts of earlier tables, to order the next table after them.

    All tables have the same columns. `capacity` is that of the cache in units of the cells, None for one without
    bounds; what is remembered is bounded beside that, see `EarlierPrompts`. Threads may call `reorder` at once: they
    take turns, and each finds what those before it did. Raises OptimizerError for a capacity below one.

    Example:
        memory = PromptMemory()
        for table in tables:
            prompts = render(table, memory.reorder(table))
    """

    def __init__(self, capacity: int | None = None):
        if capacity is not None and capacity < 1:
            raise OptimizerError(f"capacity must be at least 1 unit, got {capacity}")
        self._capacity = capacity
        self._earlier = EarlierPrompts()
        self._columns: Ints | None = None  # in which fields stand where their order does not matter yet
        self._backward = False  # whether the last table was shown against the order of its texts
        self._lock = threading.Lock()

    def reorder(
        self,
        table: pa.Table | Cells,
        plan: Callable[[Cells], Ordering] = reorder,
        *,
        more: bool = False,
        alone: bool = True,
    ) -> Ordering:
        """Order a table after what has been shown, and remember how it will be shown.

        `plan` orders a table by itself, as `reorder` with any options does. Where its method chooses fields freely,
        that order is compared with the one that follows earlier prompts (`following_fields`) and with one order of
        columns for all rows; the one that finds most is taken, so no less than by itself is found. With `more`, other
        tables like this one are expected: then the first is shown in one order of columns where that pays as soon as
        the second comes (`_first_fields`). `alone` says that all prompts of earlier tables have been shown; while they
        are being shown, rows come in the same direction as theirs.

        `stats.hit_units` and `stats.candidates` include whole cells found in earlier prompts, `stats.partial_units`
        only what the rows share among each other. Raises what `plan` raises.
        """
        cells = as_cells(table)
        own = plan(cells)
        batch = _Batch.of(cells)
        with self._lock:
            if alone:
                self._earlier.keep(self._capacity)
            ordering = self._chosen(batch, own, plan, more)
            if own.stats.method != "none":
                ordering = self._laid_out(batch, ordering, alone)
            prompts = batch.prompts(ordering.rows, ordering.fields)
            if ordering is own or not _fields_are_free(own):
                gained = self._earlier.hit_units(prompts) - int(prompts.shared_with_row_before().sum())
                stats = replace(ordering.stats, hit_units=ordering.stats.hit_units + max(gained, 0))
                ordering = replace(ordering, stats=stats)
            self._earlier.learn(prompts)
        return ordering

    def _chosen(self, batch: _Batch, own: Ordering, plan: Callable[[Cells], Ordering], more: bool) -> Ordering:
        """The best order of fields, with its rows depth-first in the order of their texts."""
        if not _fields_are_free(own) or not batch.cells.num_rows or not (more or len(self._earlier)):
            return own
        fields = np.empty_like(own.fields)
        fields[own.rows] = own.fields
        if self._columns is None:
            self._columns = batch.best_columns(fields)
        one_order = same_fields(self._columns, batch.cells.num_rows)
        if len(self._earlier):
            candidates = {FOLLOWING: self._following(batch, fields), own.stats.chosen: fields, ONE_ORDER: one_order}
        elif _pays_to_agree(batch, plan, self._columns):
            candidates = {ONE_ORDER: one_order}
        else:
            candidates = {FOLLOWING: self._following(batch, fields)}
        counted = {name: batch.counted(found, self._earlier) for name, found in candidates.items()}
        name = max(counted, key=lambda name: counted[name].total)  # the first of equals
        best = counted[name]
        stats = replace(
            own.stats,
            chosen=name,
            hit_units=best.whole,
            partial_units=best.partial,
            candidates={**own.stats.candidates, **{name: found.total for name, found in counted.items()}},
        )
        rows = best.rows.astype(np.int64)
        return Ordering(rows, candidates[name][rows].astype(np.int32), stats)

    def _following(self, batch: _Batch, fields: Fields) -> Fields:
        assert self._columns is not None
        return following_fields(batch.cells, fields, self._earlier, self._columns, batch.hashes)

    def _laid_out(self, batch: _Batch, ordering: Ordering, alone: bool) -> Ordering:
        """The same rows from the other end than the last table's, first those that share most with its last prompt.

        So what was shown last, and is kept longest, is used first.
        """
        rows = np.arange(len(ordering.rows))
        if alone and len(self._earlier):
            self._backward = not self._backward
        if self._backward:
            rows = rows[::-1]
        if alone and len(self._earlier.last) and len(rows):
            chains = batch.prompts(ordering.rows[rows], ordering.fields[rows]).chains
            # a prefix is equal up to each of its ends
            common = ((chains == self._earlier.last) & (chains > 0)).sum(axis=1)
            rows = rows[np.argsort(-common, kind="stable")]  # keeps each subtree together: its rows have one value
        items = {name: shown[rows] for name, shown in ordering.items.items()}
        return replace(ordering, rows=ordering.rows[rows], fields=ordering.fields[rows], items=items)


@dataclass(frozen=True)
class _Counted:
    """What an order of fields finds, and its rows depth-first."""

    whole: int  # units in whole cells, those of earlier prompts included
    partial: int
    rows: Indices

    @property
    def total(self) -> int:
        return self.whole + self.partial


@dataclass(frozen=True)
class _Batch:
    """A table, and what is computed of it once."""

    cells: Cells
    order: CellOrder
    hashes: Hashes

    @classmethod
    def of(cls, cells: Cells) -> _Batch:
        return cls(cells, text_order(cells), cell_hashes(cells))

    def some(self, rows: AnyInts) -> _Batch:
        return replace(self, cells=self.cells.select_rows(rows))

    def prompts(self, rows: AnyInts, fields: Fields) -> Prompts:
        return Prompts.of(self.cells, rows, fields, self.hashes)

    def counted(self, fields: Fields, earlier: EarlierPrompts) -> _Counted:
        shared, rows = count_shared(self.cells, fields, self.order)
        whole = earlier.hit_units(self.prompts(rows, fields[rows])) if len(earlier) else shared.whole
        return _Counted(whole, shared.partial, rows)

    def best_columns(self, fields: Fields) -> Ints:
        """The one order of columns in which rows share most: by their places in `fields`, or by statistics."""
        by_score = columns_by_score(self.cells, None, np.arange(self.cells.num_columns))
        found = [columns_by_place(self.cells, fields), by_score.astype(np.int64)]
        shared = [
            count_shared(self.cells, same_fields(columns, self.cells.num_rows), self.order)[0] for columns in found
        ]
        return found[0] if shared[0].total >= shared[1].total else found[1]


def _fields_are_free(own: Ordering) -> bool:
    return own.stats.method in FREE_FIELDS and not own.items


def _pays_to_agree(batch: _Batch, plan: Callable[[Cells], Ordering], columns: Ints) -> bool:
    """Whether one order of columns finds more than orders of their own, if each half of the rows is shown by itself.

    The halves are those in which the rows have come, and the second is ordered after the first. So it is tried out on
    the table itself whether later tables find again what a first one shows: of shuffled rows they do, of sorted rows
    they do not, and where rows share much by a few columns each, orders of their own are better all the same.
    """
    earlier, hits = EarlierPrompts(), 0
    if batch.cells.num_rows < 2:
        return False
    for rows in np.array_split(np.arange(batch.cells.num_rows), 2):
        half = batch.some(rows)
        ordering = plan(half.cells)
        fields = np.empty_like(ordering.fields)
        fields[ordering.rows] = ordering.fields
        following = following_fields(half.cells, fields, earlier, columns, half.hashes)
        counted = half.counted(following, earlier)
        hits += counted.total
        earlier.learn(half.prompts(counted.rows, following[counted.rows]))
    return batch.counted(same_fields(columns, batch.cells.num_rows), EarlierPrompts()).total > hits
