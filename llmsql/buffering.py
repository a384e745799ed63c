"""Batches that are held back until there are enough rows to ask about together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


def buffered(batches: Iterable[Batch], rows: int, length: Callable[[Batch], int]) -> Iterator[list[Batch]]:
    """Runs of consecutive batches of together at least `rows` rows, except for the last; `length` counts a batch's."""
    held: list[Batch] = []
    num_rows = 0
    for batch in batches:
        held.append(batch)
        num_rows += length(batch)
        if num_rows >= rows:
            yield held
            held, num_rows = [], 0
    if held:
        yield held
