"""One batched product of a step's attention: which query tokens meet which KV slots."""

from __future__ import annotations

from dataclasses import dataclass

from .cascade import Ints


@dataclass(frozen=True)
class Run:
    """Keys at even distances: key `k` of block `b` lies in slot `first + b * stride + k`."""

    first: int
    stride: int = 0


@dataclass(frozen=True)
class Part:
    """Blocks of query tokens, each against keys of its own: one product per KV head."""

    tokens: Ints  # [blocks, queries] places in the plan's order; a short block repeats its last one
    num_keys: int
    slots: Run | Ints  # of the keys; [blocks, num_keys], where a short block repeats its last one
    newest: Ints | None = None  # [blocks or 1, queries or 1] index of the last key that a query sees; None: all see all
    window: int | None = None  # how many keys a query sees, up to the newest one; None: all

    def without_idle_mask(self) -> Part:
        """The same part without a mask, if all of its queries see all keys."""
        assert self.newest is not None
        to_the_end = int(self.newest.min()) >= self.num_keys - 1
        from_the_start = self.window is None or int(self.newest.max()) < self.window
        return Part(self.tokens, self.num_keys, self.slots) if to_the_end and from_the_start else self
