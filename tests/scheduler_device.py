"""A simulated device for the scheduler: every slot remembers which prefix was written into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.node import Node
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import LabelNode, Sequence
from llmsql.gpu_backend.step import Step
from llmsql.gpu_backend.tree import PrefixTree

LABELS = (LabelNode(-1, (7, 8)), LabelNode(0, (9,)), LabelNode(-1, (6,)))


def make_scheduler(
    *,
    num_blocks: int = 200,
    block_size: int = 4,
    sharing: bool = True,
    caching: bool = False,
    longest_first: bool = True,
    **options: Any,
) -> Scheduler:
    tree = PrefixTree(BlockPool(num_blocks, block_size), sharing=sharing, caching=caching, longest_first=longest_first)
    return Scheduler(tree, **{"max_tokens": 16, "max_logits": 100, "max_running": 100, **options})


def request(prompt: list[int], max_tokens: int = 3, labels: tuple[LabelNode, ...] = ()) -> Sequence:
    return Sequence(np.array(prompt, np.int32), max_tokens, labels=labels, scores_only=max_tokens == 0)


@dataclass
class Device:
    """Runs steps: writes prefixes into slots, then checks that every chunk finds its whole path."""

    scheduler: Scheduler
    checks: bool = True
    max_forced: int = 0  # tokens that come along with a sampled one, at most
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    prompt_tokens: int = 0
    label_tokens: int = 0
    finished: dict[Sequence, int] = field(default_factory=dict)
    rejected: dict[Sequence, str] = field(default_factory=dict)

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler does not come to an end")

    def step(self) -> bool:
        step = self.scheduler.schedule()
        if step is None:
            return False
        self.rejected.update(step.rejected)
        self._check_limits(step)
        tails = {sequence.tail for sequence in [*self.scheduler._prefilling, *self.scheduler._decoding]}
        for chunk in step.chunks if self.checks else []:
            self._write(chunk.node, chunk.start, chunk.end)
        for chunk in step.chunks if self.checks else []:
            self._read(chunk.node, chunk.end)
        self.scheduler.commit(step)
        for chunk in step.chunks:
            assert chunk.generated == (chunk.node in tails)
            self.prompt_tokens += 0 if chunk.generated or chunk.all_logits else chunk.length
            self.label_tokens += chunk.length if chunk.all_logits else 0
            for sequence in chunk.sequences:
                if not sequence.scores_only:
                    self._append(sequence)
        for sequence in step.prefilled:
            if sequence.scores_only:
                self._finish(sequence)
        if self.checks:
            self.scheduler.check()
        return True

    def _append(self, sequence: Sequence) -> None:
        produced = sequence.num_generated + 1
        forced = (produced + len(sequence.token_ids)) % (self.max_forced + 1)
        if produced == sequence.max_tokens:
            self._finish(sequence)
        elif forced == 0:
            self.scheduler.append(sequence, 100 + produced)
        else:
            end = min(produced + forced, sequence.max_tokens - 1)
            self.scheduler.append(sequence, range(100 + produced, 101 + end))

    def _finish(self, sequence: Sequence) -> None:
        assert sequence not in self.finished
        assert all(node.num_computed == node.length for node in [*sequence.leaf.path(), *sequence.private_nodes()])
        self.finished[sequence] = sequence.num_generated
        self.scheduler.remove(sequence)

    def _check_limits(self, step: Step) -> None:
        assert step.num_tokens == sum(chunk.length for chunk in step.chunks) <= self.scheduler.max_tokens
        logits = sum(chunk.length if chunk.all_logits else bool(chunk.sequences) for chunk in step.chunks)
        assert step.num_logits == logits <= self.scheduler.max_logits
        assert len({chunk.node for chunk in step.chunks}) == len(step.chunks)
        assert all(chunk.length > 0 for chunk in step.chunks)

    def _prefixes(self, node: Node) -> list[tuple[int, ...]]:
        path = [token for part in node.path() for token in part.tokens[: part.length].tolist()]
        return [tuple(path[: position + 1]) for position in range(node.position, node.end)]

    def _write(self, node: Node, start: int, end: int) -> None:
        slots = node.slots(end, self.scheduler.tree.pool.block_size)
        for offset in range(start, end):
            self.slots[slots[offset]] = self._prefixes(node)[offset]

    def _read(self, node: Node, end: int) -> None:
        for part in node.path():
            length = end if part is node else part.length
            slots = part.slots(length, self.scheduler.tree.pool.block_size)
            assert [self.slots.get(slot) for slot in slots] == self._prefixes(part)[:length], f"{part} lost its KV"
