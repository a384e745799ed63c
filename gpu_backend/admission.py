"""Which requests may run, so that each running one can always get the blocks that it may still need.

A request is admitted if, in the future in which every running row grows by one token per step up to its `max_tokens`
and frees its blocks then, the blocks in use never exceed the pool (the test of LightLLM, extended to shared nodes,
which go with the last request that needs them). Rows that end early only free blocks earlier.

Real steps may differ: a grammar forces several tokens, a full step leaves rows out, a prompt takes longer. So every
growth is checked as in Dijkstra's banker's algorithm: a row may grow if all rows can still be finished one after the
other. Otherwise it stands still for a step, which never happens to the row that can be finished first. No request
is ever thrown out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from .forecast import Forecast, blocks_freed
from .node import Node
from .sequence import Sequence
from .tree import Placement, PrefixTree

_STEPS_TO_NEXT_TEST = 4  # after a refusal, if no request leaves: a row that starts later grows later


class Admission:
    """The blocks that running requests hold and may still take; `exact=False` reserves them from the start."""

    def __init__(self, tree: PrefixTree, running: Callable[[], list[Sequence]], *, exact: bool = True) -> None:
        self.tree = tree
        self.running = running  # the rows at work, those that decode first and the others in the order of their prompts
        self.exact = exact
        self.promised = 0  # blocks that the running rows' tails may still take
        self._slack: int | None = None  # blocks that rows may take before the order of finishing is looked at again
        self._first: Sequence | None = None  # the row that can be finished first
        self._forecast: Forecast | None = None  # for the requests that are tested in one step
        self._refused: Sequence | None = None
        self._steps_to_test = 0

    def begin_step(self) -> None:
        """Rows have grown or left since requests were tested last."""
        self._forecast = None
        self._steps_to_test -= 1

    def fits(self, sequence: Sequence, nodes: list[Node], *, prefill_rate: int) -> bool:
        """Whether the waiting request, which needs `nodes`, may start now; `prefill_rate`: prompt tokens per step."""
        if sequence is self._refused and self._steps_to_test > 0 and self.tree.num_pinned_blocks > 0:
            return False
        places = self.tree.placement(nodes)
        now = sum(place.num_blocks for place in places)
        later = self.blocks_to_come(sequence, places)
        free = self.tree.pool.num_blocks - self.tree.num_pinned_blocks - _idle_blocks(sequence)
        fits = now + later + self.promised <= free
        if not fits and self.exact and now <= free:
            if self._forecast is None:
                self._forecast = Forecast(
                    self.running(), prefill_rate=prefill_rate, block_size=self.tree.pool.block_size
                )
            fits = self._forecast.peak_with(sequence, places) <= self.tree.pool.num_blocks
        if fits and self._forecast is not None:
            self._forecast.add(sequence, places)
        self._refused = None if fits else sequence
        self._steps_to_test = _STEPS_TO_NEXT_TEST
        return fits

    def blocks_to_come(self, sequence: Sequence, places: Iterable[Placement] = ()) -> int:
        """Blocks that the request's tail may still take, from where it lies or is to lie."""
        tail = sequence.tail
        if tail is None:
            return 0
        offset, held = tail.offset, len(tail.blocks)
        for place in places:
            if place.node is tail:
                offset, held = place.offset, int(place.offset > 0)
        return -(-(offset + tail.capacity) // self.tree.pool.block_size) - held

    def enter(self, sequence: Sequence) -> None:
        """The request has started and has its first blocks."""
        self.promised += self.blocks_to_come(sequence)
        self._slack = None

    def leave(self, sequence: Sequence) -> None:
        """The request, which was running, is about to be removed."""
        to_come = self.blocks_to_come(sequence)
        self.promised -= to_come
        if to_come > 0:  # earlier than was foreseen
            self._refused = None
        if sequence is self._first:
            self._slack = None

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give the row's tail the blocks for `length` tokens; False if it must stand still for now."""
        tail = sequence.tail
        assert tail is not None
        count = -(-(tail.offset + length) // self.tree.pool.block_size) - len(tail.blocks)
        if count <= 0:
            return True
        if self._slack is None or (self._slack < count and sequence is not self._first):
            self._slack, self._first = self._look_ahead()
        if sequence is not self._first:
            if self._slack < count:
                return False
            self._slack -= count
        self.tree.grow(tail, length)
        self.promised -= count
        return True

    def check(self) -> None:
        """Assert that the running rows can be finished one after the other."""
        assert self.promised == sum(self.blocks_to_come(sequence) for sequence in self.running())
        self._look_ahead()

    def _look_ahead(self) -> tuple[int, Sequence | None]:
        """Blocks that may go to any rows without harm, and the row that can be finished with what is free now."""
        running = self.running()
        free = self.tree.pool.num_blocks - self.tree.num_pinned_blocks
        if self.promised <= free:
            return self.promised, None
        block_size = self.tree.pool.block_size
        tails = [row.tail for row in running]
        room = [0 if tail is None else tail.offset + len(tail.tokens) + block_size - 1 for tail in tails]
        held = np.array([0 if tail is None else len(tail.blocks) for tail in tails])
        claims = np.array([tail is not None and tail.claims for tail in tails])
        to_come = np.array(room) // block_size - held
        order = np.argsort(to_come, kind="stable")
        rows = [running[index] for index in order.tolist()]
        freed = np.array(blocks_freed(rows), np.int64) + (held - claims)[order]
        margins = free + np.cumsum(freed) - freed - to_come[order]
        slack = int(margins.min())
        assert slack >= 0, "the running rows cannot all be finished: admission must prevent this"
        return slack, rows[0]


def _idle_blocks(sequence: Sequence) -> int:
    """Blocks on the waiting request's path that count as free as long as it waits."""
    return sum(node.num_own_blocks for node in sequence.leaf.path() if node.num_running == 0)
