"""Reordering of a stream: buffers of bounded size, each of which goes on where the one before ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .cells import Cells, encode
from .dependencies import Given
from .errors import OptimizerError
from .grouping import Ints
from .ordering import Ordering
from .parts import shared_with_row_before
from .prefix_tree import depth_first, prompt_sequences
from .reorder import reorder
from .table_parts import columns_by_place
from .unordered import arrange_items
from .working_memory import BYTES_PER_CELL, SHARE_OF_FREE, free_memory

Hashes = npt.NDArray[np.uint64]
MAX_BUFFER = 2**28  # bytes, when nothing else is said
MAX_KNOWN = 2**20  # prefixes of earlier buffers that are remembered
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def reorder_batches(
    batches: Iterable[pa.Table | pa.RecordBatch],
    *,
    method: str = "auto",
    dependencies: Sequence[Given] | None = None,
    tolerance: float = 0.0,
    unordered: Sequence[str] = (),
    working_memory: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[pa.Table, Ordering]]:
    """Order a stream of Arrow tables or batches, as for a Spark partition that does not fit into memory.

    Rows are held until they, their cells and the planning would take `working_memory` bytes (None: a quarter of the
    free memory, at most 256 MiB), then ordered as `reorder` does and given out with their table. The columns' order
    learned so far is tried on each buffer beside its own, and prefixes that earlier buffers had count as hits, for a
    cache that keeps them; a buffer begins with the rows that share most with the last prompt. `stats.hit_units` and
    `stats.candidates` include such hits across buffers in whole cells, `stats.partial_units` only those within one.

    Raises OptimizerError as `reorder`, and for a batch whose schema is not that of the first.

    Example:
        for table, ordering in reorder_batches(reader, working_memory=2**26):
            prompts = render(table, ordering)
    """
    memory = _Memory()
    for table in _buffers(batches, _limit(working_memory)):
        ordering = reorder(
            table,
            method=method,
            dependencies=dependencies,
            tolerance=tolerance,
            unordered=unordered,
            working_memory=working_memory,
            seed=seed,
        )
        cells = encode(arrange_items(table, ordering))
        if method in ("auto", "tree"):
            ordering = _better(cells, ordering, memory, may_change=not unordered)
        if method != "none":
            ordering = memory.continued(cells, ordering)
        hits = memory.hit_units(cells, ordering)
        gained = hits - int(shared_with_row_before(cells, ordering).sum())
        stats = ordering.stats
        ordering = replace(ordering, stats=replace(stats, hit_units=stats.hit_units + max(gained, 0)))
        memory.learn(cells, ordering)
        yield table, ordering


@dataclass
class _Memory:
    """What is known of the buffers so far: prefixes by the hash of their cells' texts, and the columns' order."""

    known: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))  # ascending
    last: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))  # the prefixes of the last prompt
    columns: Ints | None = None

    def hit_units(self, cells: Cells, ordering: Ordering) -> int:
        """Units of whole cells that each row begins with as a row of this or an earlier buffer does, summed up."""
        chains, lengths = _chains(cells, ordering)
        warm = np.where(np.logical_and.accumulate(np.isin(chains, self.known), axis=1), lengths, 0).sum(axis=1)
        return int(np.maximum(warm, shared_with_row_before(cells, ordering)).sum())

    def continued(self, cells: Cells, ordering: Ordering) -> Ordering:
        """The same order, in which the rows that begin as the last prompt did come first, at every level."""
        if not len(self.last) or not len(ordering.rows):
            return ordering
        chains, _ = _chains(cells, ordering)
        width = min(chains.shape[1], len(self.last))
        common = np.logical_and.accumulate(chains[:, :width] == self.last[:width], axis=1).sum(axis=1)
        order = np.argsort(-common, kind="stable")  # keeps each subtree together: its rows have one value
        items = {name: shown[order] for name, shown in ordering.items.items()}
        return replace(ordering, rows=ordering.rows[order], fields=ordering.fields[order], items=items)

    def learn(self, cells: Cells, ordering: Ordering) -> None:
        """Remember the prefixes that two rows had, and the last prompt's."""
        if not len(ordering.rows):
            return
        chains, _ = _chains(cells, ordering)
        values, counts = np.unique(chains, return_counts=True)
        shared = values[(counts > 1) & (values > 0)]
        self.known = np.union1d(shared, self.known[: MAX_KNOWN - min(len(shared), MAX_KNOWN)])[:MAX_KNOWN]
        self.last = chains[-1]
        if self.columns is None:
            by_row = np.empty_like(ordering.fields)
            by_row[ordering.rows] = ordering.fields
            self.columns = columns_by_place(cells, by_row)


def _better(cells: Cells, ordering: Ordering, memory: _Memory, *, may_change: bool) -> Ordering:
    """The buffer's own order, or the one by the columns learned so far when that finds more across buffers."""
    if memory.columns is None or not may_change:
        return ordering
    fields: npt.NDArray[np.int32] = np.tile(memory.columns.astype(np.int32), (cells.num_rows, 1))
    rows = depth_first(prompt_sequences(cells, fields)).astype(np.int64)
    learned = replace(ordering, rows=rows, fields=fields[rows])
    own_hits, hits = memory.hit_units(cells, ordering), memory.hit_units(cells, learned)
    candidates = {**ordering.stats.candidates, "columns of earlier buffers": hits}
    if hits <= own_hits + ordering.stats.partial_units:
        return replace(ordering, stats=replace(ordering.stats, candidates=candidates))
    within = int(shared_with_row_before(cells, learned).sum())
    stats = replace(
        ordering.stats,
        chosen="columns of earlier buffers",
        hit_units=within,
        partial_units=0,
        candidates=candidates,
    )
    return replace(learned, stats=stats)


def _chains(cells: Cells, ordering: Ordering) -> tuple[Hashes, Ints]:
    """For each shown row hashes of its prefixes, one cell longer each, and the cells' lengths; 0 where it has ended."""
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    hashes = np.zeros(len(cells.id_lengths), np.uint64)
    for number, text in enumerate(cells.id_texts.to_pylist()):
        data = text.encode("utf-8", "surrogatepass")
        hashes[number] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") | 1
    chains = np.zeros(sequences.shape, np.uint64)
    before = np.zeros(len(sequences), np.uint64)
    with np.errstate(over="ignore"):
        for depth in range(sequences.shape[1]):
            before = (before ^ hashes[sequences[:, depth]]) * _MULTIPLIER
            before ^= before >> np.uint64(29)
            chains[:, depth] = np.where(sequences[:, depth] > 0, before | np.uint64(1), 0)
    return chains, np.where(sequences > 0, cells.id_lengths[sequences], 0)


def _limit(working_memory: int | None) -> int:
    if working_memory is not None:
        if working_memory < 1:
            raise OptimizerError(f"working_memory must be at least 1 byte, got {working_memory}")
        return working_memory
    free = free_memory()
    return MAX_BUFFER if free is None else min(MAX_BUFFER, free // SHARE_OF_FREE)


def _buffers(batches: Iterable[pa.Table | pa.RecordBatch], limit: int) -> Iterator[pa.Table]:
    """Tables that may take `limit` bytes with all that planning needs, and have at least one row."""
    held: list[pa.Table] = []
    used, schema = 0, None
    for number, batch in enumerate(batches, start=1):
        if not isinstance(batch, pa.Table | pa.RecordBatch):
            raise OptimizerError(f"batch {number} is no Arrow table or record batch, but {type(batch).__name__}")
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if schema is None:
            schema = table.schema
        elif not table.schema.equals(schema):
            raise OptimizerError(f"batch {number} has the schema {_names(table.schema)}, the first {_names(schema)}")
        while table.num_rows:
            bytes_per_row = _bytes_per_row(table)
            fits = max(int((limit - used) // bytes_per_row), 0 if held else 1)
            taken = table.slice(0, fits)
            if taken.num_rows:
                held.append(taken)
                used += int(taken.num_rows * bytes_per_row)
                table = table.slice(taken.num_rows)
            if table.num_rows:
                yield pa.concat_tables(held)
                held, used = [], 0
    if held:
        yield pa.concat_tables(held)


def _bytes_per_row(table: pa.Table) -> float:
    """The rows themselves, their rendered text, and what planning takes for their cells."""
    return float(2 * table.nbytes / table.num_rows + BYTES_PER_CELL * table.num_columns + 1)


def _names(schema: pa.Schema) -> str:
    return ", ".join(f"{part.name} {part.type}" for part in schema)
