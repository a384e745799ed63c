"""Blocks in use from now on, if every row grows by one token per step and ends at its `max_tokens`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .node import Node
from .sequence import Sequence
from .tree import Placement

Ints = npt.NDArray[np.int64]


class Forecast:
    """The blocks that rows hold at the end of each of them; between two ends their number only grows.

    Row `i` has `clip(ahead[i] + s, 0, capacity[i])` generated tokens in step `s` from now, counted from 1, and ends
    after step `capacity[i] - ahead[i]`. Rows whose prompts are still to be run begin one after the other, as steps of
    `prefill_rate` prompt tokens let them. A node goes with the last row below it.
    """

    def __init__(self, rows: list[Sequence], *, prefill_rate: int, block_size: int) -> None:
        self._block_size = block_size
        self._prefill_rate = prefill_rate
        self._seen: set[Node] = set()  # nodes whose tokens are counted in `_pending`
        self._pending = 0  # prompt and label tokens to be run
        tails = [row.tail for row in rows]
        self._ahead: Ints = np.array([self._count_ahead(row) for row in rows], np.int64)  # [rows]
        self._capacity: Ints = np.array([0 if tail is None else tail.capacity for tail in tails], np.int64)
        self._offset: Ints = np.array([0 if tail is None else tail.offset for tail in tails], np.int64)
        self._end = self._capacity - self._ahead
        self._end_of: dict[Node, int] = {}  # the last step of the last row below
        order = np.argsort(self._end, kind="stable")
        freed = np.empty(len(rows), np.int64)
        freed[order] = blocks_freed([rows[index] for index in order.tolist()], self._end[order].tolist(), self._end_of)
        self._steps, first = np.unique(self._end[order], return_index=True)  # [ends]
        self._held: Ints = np.cumsum(freed[order][::-1])[::-1][first]  # [ends] blocks of prompts and labels
        self._in_use = self._held + self._tail_blocks_at_ends()

    def peak_with(self, sequence: Sequence, places: Iterable[Placement]) -> int:
        """Most blocks in use at one time if the waiting request, whose nodes go to `places`, starts now too."""
        return int(self._joined(sequence, places)[1].max())

    def add(self, sequence: Sequence, places: Iterable[Placement]) -> None:
        """Count the request as a row from now on; to be called before it gets its blocks."""
        places = list(places)
        self._steps, self._in_use, self._held, end = self._joined(sequence, places)
        node = sequence.leaf
        while node.parent is not None and self._end_of.get(node, -1) < end:
            self._end_of[node] = end
            node = node.parent
        ahead, capacity, offset = self._row(sequence, places, keep=True)
        self._ahead = np.append(self._ahead, ahead)
        self._capacity = np.append(self._capacity, capacity)
        self._offset = np.append(self._offset, offset)
        self._end = np.append(self._end, end)

    def _joined(self, sequence: Sequence, places: Iterable[Placement]) -> tuple[Ints, Ints, Ints, int]:
        """Steps, blocks in use and blocks of prompts with one more row, and the row's last step."""
        places = list(places)
        ahead, capacity, offset = self._row(sequence, places, keep=False)
        end = capacity - ahead
        steps, in_use, held = self._steps, self._in_use, self._held
        index = int(np.searchsorted(steps, end))
        if index == len(steps) or steps[index] != end:
            held_then = int(held[index]) if index < len(held) else 0
            tails = int(self._tail_blocks(np.int64(end), self._end >= end).sum())
            steps = np.insert(steps, index, end)
            held = np.insert(held, index, held_then)
            in_use = np.insert(in_use, index, held_then + tails)
        until = steps <= end
        new = {place.node: place.num_blocks for place in places}
        added = until * sum(label.num_own_blocks or new.get(label, 0) for label in sequence.label_nodes)
        node = sequence.leaf
        while node.parent is not None and (before := self._end_of.get(node, -1)) < end:
            added = added + (until & (steps > before)) * (node.num_own_blocks or new.get(node, 0))
            node = node.parent
        grown = np.clip(ahead + steps, 0, capacity)
        tail = (offset + grown + self._block_size - 1) // self._block_size - (offset > 0)
        return steps, in_use + added + until * tail, held + added, end

    def _tail_blocks_at_ends(self) -> Ints:
        """Blocks of all tails in each of `_steps`; O(rows * block size) for rows that decode."""
        size, steps = self._block_size, self._steps
        begun = self._ahead >= 0
        end = self._end[begun]
        order = np.argsort(-end, kind="stable")
        counts = np.searchsorted(-end[order], -steps, side="right")  # rows not ended before each step
        base = (self._offset + self._ahead)[begun][order] + size - 1
        whole = _sums(base // size - (self._offset[begun][order] > 0))[counts] + counts * (steps // size)
        residues = np.zeros((len(base) + 1, size), np.int64)  # how many of the first rows have each residue
        residues[np.arange(1, len(base) + 1), base % size] = 1
        over = np.cumsum(np.cumsum(residues, axis=0)[:, ::-1], axis=1)  # [rows + 1, n]: residue at least size - 1 - n
        step_residue = steps % size
        whole += np.where(step_residue > 0, over[counts, step_residue - 1], 0)
        waiting = ~begun
        if waiting.any():
            still = self._end[waiting] >= steps[:, None]
            whole += self._tail_blocks(steps[:, None], waiting, still).sum(axis=1)
        blocks: Ints = whole
        return blocks

    def _tail_blocks(
        self, step: Ints | np.int64, rows: npt.NDArray[np.bool_], still: npt.NDArray[np.bool_] | None = None
    ) -> Ints:
        """Blocks of the rows' generated tokens in a step, but the one that their prompts hold too; 0 unless `still`."""
        generated = np.clip(self._ahead[rows] + step, 0, self._capacity[rows])
        blocks: Ints = (self._offset[rows] + generated + self._block_size - 1) // self._block_size
        blocks -= self._offset[rows] > 0
        return blocks if still is None else blocks * still

    def _row(self, sequence: Sequence, places: list[Placement], *, keep: bool) -> tuple[int, int, int]:
        """A new row's `ahead`, `capacity` and offset."""
        pending = self._pending
        ahead = self._count_ahead(sequence, keep=keep)
        if not keep:
            self._pending = pending
        tail = sequence.tail
        if tail is None:
            return ahead, 0, 0
        return ahead, tail.capacity, next((place.offset for place in places if place.node is tail), tail.offset)

    def _count_ahead(self, row: Sequence, *, keep: bool = True) -> int:
        """The length that the row's tail has in the next step, less 1; below 0 as long as its prompt is run."""
        if row.prompt_done and row.tail is not None:
            return row.tail.length - 1
        node = row.leaf
        while node.num_computed < node.length and node not in self._seen:
            if keep:
                self._seen.add(node)
            self._pending += node.length - node.num_computed
            assert node.parent is not None
            node = node.parent
        self._pending += sum(label.length - label.num_computed for label in row.label_nodes)
        return -max(1, -(-self._pending // self._prefill_rate))


def blocks_freed(
    rows: list[Sequence], ends: list[int] | None = None, end_of: dict[Node, int] | None = None
) -> list[int]:
    """The blocks, tails apart, that become free with each of the rows when they finish in this order.

    Notes in `end_of` when each node goes, if the rows' `ends` are given.
    """
    last: dict[Node, int] = {} if end_of is None else end_of
    freed = []
    for index in range(len(rows) - 1, -1, -1):
        row = rows[index]
        count, end = 0, 0 if ends is None else ends[index]
        node = row.leaf
        while node.parent is not None and node not in last:
            last[node] = end
            count += len(node.blocks) - node.claims
            node = node.parent
        for label in row.label_nodes:
            count += label.num_own_blocks
        freed.append(count)
    freed.reverse()
    return freed


def _sums(values: Ints) -> Ints:
    """Sums of the first 0, 1, 2, ... values."""
    sums: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return sums
