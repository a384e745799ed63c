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
        self._refused: Sequence | None = None
        self._steps_to_test = 0

    def fits(self, sequence: Sequence, nodes: list[Node], *, prefill_rate: int) -> bool:
        """Whether the waiting request, which needs `nodes`, may start now; `prefill_rate`: prompt tokens per step."""
        if sequence is self._refused and self._steps_to_test > 0:
            self._steps_to_test -= 1
            return False
        places = self.tree.placement(nodes)
        now = sum(place.num_blocks for place in places)
        later = self.blocks_to_come(sequence, places)
        free = self.tree.pool.num_blocks - self.tree.num_pinned_blocks - _idle_blocks(sequence)
        fits = now + later + self.promised <= free
        if not fits and self.exact and now <= free:
            fits = self._peak(sequence, places, prefill_rate) <= self.tree.pool.num_blocks
        self._refused = None if fits or self.tree.num_pinned_blocks == 0 else sequence
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
        self.promised -= self.blocks_to_come(sequence)
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
        to_come = [self.blocks_to_come(sequence) for sequence in running]
        order = np.argsort(to_come, kind="stable")
        rows = [running[index] for index in order.tolist()]
        freed = np.array(_freed_by(rows, {}), np.int64)
        freed += [0 if row.tail is None else row.tail.num_own_blocks for row in rows]
        margins = free + np.cumsum(freed) - freed - np.array(to_come)[order]
        slack = int(margins.min())
        assert slack >= 0, "the running rows cannot all be finished: admission must prevent this"
        return slack, rows[0]

    def _peak(self, sequence: Sequence, places: list[Placement], prefill_rate: int) -> int:
        """Most blocks in use at one time from now on, if the request is admitted and every row runs to its end.

        Row `i` has `clip(ahead[i] + s, 0, capacity[i])` generated tokens in step `s` from now, counted from 1.
        """
        rows = [*self.running(), sequence]
        ahead = np.array(_generated_ahead(rows, prefill_rate))
        tails = [row.tail for row in rows]
        capacity = np.array([0 if tail is None else tail.capacity for tail in tails])
        offset = np.array([0 if tail is None else tail.offset for tail in tails])
        new = {place.node: place.num_blocks for place in places}
        offset[-1] = next((place.offset for place in places if place.node is sequence.tail), 0)
        last_step = capacity - ahead
        order = np.argsort(last_step, kind="stable")
        freed = np.empty(len(rows), np.int64)
        freed[order] = _freed_by([rows[index] for index in order.tolist()], new)
        steps = np.unique(last_step)[:, None]  # blocks in use only fall where a row ends
        generated = np.clip(ahead + steps, 0, capacity)  # [steps, rows]
        in_use = -(-(offset + generated) // self.tree.pool.block_size) - (offset > 0) + freed
        return int((in_use * (last_step >= steps)).sum(axis=1).max())


def _idle_blocks(sequence: Sequence) -> int:
    """Blocks on the waiting request's path that count as free as long as it waits."""
    return sum(node.num_own_blocks for node in sequence.leaf.path() if node.num_running == 0)


def _freed_by(rows: list[Sequence], new: dict[Node, int]) -> list[int]:
    """The blocks, tails apart, that become free with each of the rows when they finish in this order.

    `new` are the blocks of nodes that are not allocated yet.
    """
    seen: set[Node] = set()
    freed = []
    for row in reversed(rows):
        count = 0
        node = row.leaf
        while node.parent is not None and node not in seen:
            seen.add(node)
            count += node.num_own_blocks or new.get(node, 0)
            node = node.parent
        for label in row.label_nodes:
            count += label.num_own_blocks or new.get(label, 0)
        freed.append(count)
    freed.reverse()
    return freed


def _generated_ahead(rows: list[Sequence], prefill_rate: int) -> list[int]:
    """Of each row, the length that its tail has in the next step, less 1; below 0 as long as its prompt is run."""
    seen: set[Node] = set()
    pending = 0  # prompt and label tokens to be run
    ahead = []
    for row in rows:
        if row.prompt_done and row.tail is not None:
            ahead.append(row.tail.length - 1)
            continue
        node = row.leaf
        while node.num_computed < node.length and node not in seen:
            seen.add(node)
            pending += node.length - node.num_computed
            assert node.parent is not None
            node = node.parent
        pending += sum(label.length - label.num_computed for label in row.label_nodes)
        ahead.append(-max(1, -(-pending // prefill_rate)))
    return ahead
