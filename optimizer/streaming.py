"""Reordering of a stream: buffers of bounded size, each of which goes on where the one before ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from .cells import encode
from .dependencies import Given
from .errors import OptimizerError
from .ordering import Ordering
from .prompt_memory import PromptMemory
from .reorder import reorder
from .unordered import arrange_items
from .working_memory import BYTES_PER_CELL, SHARE_OF_FREE, free_memory

MAX_BUFFER = 2**28  # bytes, when nothing else is said


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
    free memory, at most 256 MiB), then ordered after the buffers before as `PromptMemory.reorder` does, and given out
    with their table. Prefixes that earlier buffers had count as hits, for a cache that keeps them.

    Raises OptimizerError as `reorder`, and for a batch whose schema is not that of the first.

    Example:
        for table, ordering in reorder_batches(reader, working_memory=2**26):
            prompts = render(table, ordering)
    """
    memory = PromptMemory()
    options = partial(
        reorder,
        method=method,
        dependencies=dependencies,
        tolerance=tolerance,
        working_memory=working_memory,
        seed=seed,
    )
    for table, more in _buffers(batches, _limit(working_memory)):
        if unordered:
            ordering = options(table, unordered=unordered)
            arranged = encode(arrange_items(table, ordering))
            yield table, memory.reorder(arranged, lambda _, ordering=ordering: ordering)  # type: ignore[misc]
        else:
            yield table, memory.reorder(table, options, more=more)


def _limit(working_memory: int | None) -> int:
    if working_memory is not None:
        if working_memory < 1:
            raise OptimizerError(f"working_memory must be at least 1 byte, got {working_memory}")
        return working_memory
    free = free_memory()
    return MAX_BUFFER if free is None else min(MAX_BUFFER, free // SHARE_OF_FREE)


def _buffers(batches: Iterable[pa.Table | pa.RecordBatch], limit: int) -> Iterator[tuple[pa.Table, bool]]:
    """Tables that may take `limit` bytes with all that planning needs, of at least one row, and whether more follow."""
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
                yield pa.concat_tables(held), True
                held, used = [], 0
    if held:
        yield pa.concat_tables(held), False


def _bytes_per_row(table: pa.Table) -> float:
    """The rows themselves, their rendered text, and what planning takes for their cells."""
    return float(2 * table.nbytes / table.num_rows + BYTES_PER_CELL * table.num_columns + 1)


def _names(schema: pa.Schema) -> str:
    return ", ".join(f"{part.name} {part.type}" for part in schema)
