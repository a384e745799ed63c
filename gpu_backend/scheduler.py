"""Which tokens run in the next step: decode rows first, then prompt chunks in depth-first order.

Nothing here changes between `schedule` and `commit`, except that requests are admitted and get blocks: a step that
fails on the device can be dropped and scheduled again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .admission import Admission
from .node import Node
from .sequence import Sequence
from .step import Step, StepBuilder
from .tree import PrefixTree


class Scheduler:
    """Admits waiting requests, cuts the work into steps of at most `max_tokens` tokens and `max_logits` logit rows.

    A request gets the blocks of its prompt when it is admitted, and those of its output as that grows (admission.py).
    """

    def __init__(
        self,
        tree: PrefixTree,
        *,
        max_tokens: int,
        max_logits: int,
        max_running: int,
        share_in_step: bool = True,
        exact_admission: bool = True,
    ) -> None:
        self.tree = tree
        self.max_tokens = max_tokens
        self.max_logits = max_logits
        self.max_running = max_running
        self.share_in_step = share_in_step
        self.admission = Admission(tree, self._running, exact=exact_admission)
        self._prefilling: dict[Sequence, None] = {}
        self._decoding: dict[Sequence, None] = {}

    @property
    def num_running(self) -> int:
        """Requests admitted and not finished."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """Requests added and not admitted."""
        return self.tree.num_waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self.tree.insert(sequence)

    def schedule(self, first: Sequence | None = None) -> Step | None:
        """The next step, or None when there is nothing to do; `first` is the waiting request to admit first, if any."""
        if first is not None:
            self.tree.visit(first)
        step = StepBuilder(self.max_tokens, self.max_logits, self.share_in_step)
        step.add_generated(self._decoding, self.tree.pool.block_size, self.admission.grow)
        for sequence in self._prefilling:
            if not step.add_prompt(sequence):
                break
        self.admission.begin_step()
        rejected = self._admit_waiting(step)
        result = step.build(rejected, self.tree.version)
        assert result.chunks or rejected or self.num_running + self.num_waiting == 0, "no progress"
        return result if result.chunks or rejected else None

    def commit(self, step: Step) -> None:
        """Record that the step ran: its tokens' KV is in the pool."""
        for chunk in step.chunks:
            node, end = chunk.node, chunk.start + chunk.length
            if end > node.num_computed:
                node.num_computed = end
            if not chunk.generated:
                for sequence in chunk.sequences:
                    sequence.prompt_done = True
        for sequence in step.prefilled:
            del self._prefilling[sequence]
            self._decoding[sequence] = None

    def append(self, sequence: Sequence, token_ids: int | Iterable[int]) -> None:
        """Add output tokens, sampled or forced, to be run in the next steps; logits come after the last of them.

        The caller finishes the request before it reaches `max_tokens`: the last output token is never run.
        """
        tail = sequence.tail
        assert sequence in self._decoding
        assert tail is not None
        assert tail.num_computed == tail.length
        added = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        assert added, "a row without new tokens would wait for ever"
        end = tail.length + len(added)
        assert end <= len(tail.tokens), f"{end} output tokens, room for {tail.capacity}"
        if len(added) == 1:  # much faster than a slice
            tail.tokens[tail.length] = added[0]
        else:
            tail.tokens[tail.length : end] = added
        sequence.num_generated += len(added)
        tail.length = end

    def concerned(self, step: Step) -> list[Sequence]:
        """The requests whose tokens the step runs; those that only share them with a later request are left out."""
        found: dict[Sequence, None] = {}
        for chunk in step.chunks:
            if chunk.sequences:
                found.update(dict.fromkeys(chunk.sequences))
                continue
            for sequence in self._running():
                if sequence.tail is chunk.node or (not sequence.prompt_done and chunk.node in sequence.leaf.path()):
                    found[sequence] = None
        return list(found)

    def remove(self, sequence: Sequence) -> None:
        """Take out a finished or cancelled request, running or waiting, and free what only it needed."""
        self._prefilling.pop(sequence, None)
        self._decoding.pop(sequence, None)
        if sequence.started:
            self.admission.leave(sequence)
        self.tree.remove(sequence, waiting=not sequence.started)

    def check(self) -> None:
        """Assert the invariants of the scheduler, the tree and the blocks."""
        self.tree.check()
        assert not set(self._prefilling) & set(self._decoding)
        running = self._running()
        assert len(running) <= self.max_running
        assert self.tree.root.num_requests == self.num_running + self.num_waiting, "a request is lost or counted twice"
        for sequence in running:
            assert sequence.started
            for node in [*sequence.leaf.path(), *sequence.label_nodes]:
                assert node.blocks, f"{node} of a running request has no blocks"
        for sequence in self._decoding:
            assert sequence.prompt_done
            assert sequence.leaf.num_computed == sequence.leaf.length
        self.admission.check()
        if not running:
            assert self.tree.num_pinned_blocks == 0, f"{self.tree.num_pinned_blocks} blocks are held though none runs"
        if not running and not self.num_waiting:
            assert len(self.tree.cache) == self.tree.cache.num_unneeded, "a node waits for nobody"

    # Below: how it is done.

    def _running(self) -> list[Sequence]:
        return [*self._decoding, *self._prefilling]

    def _admit_waiting(self, step: StepBuilder) -> list[tuple[Sequence, str]]:
        """Admit requests and add their prompts until the step is full; returns those that can never run, with why."""
        rejected: list[tuple[Sequence, str]] = []
        while not step.full and self.num_running < self.max_running:
            head = self.tree.next_waiting()
            if head is None:
                break
            if not self._fits(head):
                if self.num_running > 0:
                    break  # wait until running requests free their blocks
                self.tree.give_up_idle()  # what it shares may be scattered over more blocks than a contiguous copy
                if not self._fits(head):
                    rejected.append((head, self._too_large(head)))
                    self.tree.remove(head, waiting=True)
                    continue
            self.tree.start(head)
            self.tree.allocate(self._nodes_of(head))
            head.started = True
            self._prefilling[head] = None
            self.admission.enter(head)
            if not step.add_prompt(head):
                break
        return rejected

    def _fits(self, sequence: Sequence) -> bool:
        rate = max(1, self.max_tokens - len(self._decoding))
        return self.admission.fits(sequence, self._nodes_of(sequence), prefill_rate=rate)

    def _nodes_of(self, sequence: Sequence) -> list[Node]:
        """Every node that the request will ever need, parents first; private ones are made on the first call."""
        if sequence.tail is None and not sequence.label_nodes:
            if not sequence.scores_only and sequence.max_tokens > 1:
                space = np.empty(sequence.max_tokens - 1, np.int32)  # the last output token needs no KV
                sequence.tail = self.tree.add_private(sequence.leaf, space, 0)
            for label in sequence.labels:
                parent = sequence.leaf if label.parent < 0 else sequence.label_nodes[label.parent]
                tokens = np.array(label.token_ids, np.int32)
                sequence.label_nodes.append(self.tree.add_private(parent, tokens, len(tokens)))
        return [*sequence.leaf.path(), *sequence.private_nodes()]

    def _too_large(self, sequence: Sequence) -> str:
        pool, prompt = self.tree.pool, len(sequence.token_ids)
        places = self.tree.placement(self._nodes_of(sequence))
        needed = sum(place.num_blocks for place in places) + self.admission.blocks_to_come(sequence, places)
        private = sum(node.capacity for node in sequence.private_nodes())
        what = "choice labels" if sequence.scores_only else "output"
        return (
            f"the request needs {needed} KV blocks of {pool.block_size} tokens for {prompt} prompt tokens and {private}"
            f" tokens of {what}, and the whole pool has {pool.num_blocks} ({pool.num_blocks * pool.block_size} tokens):"
            " raise kv_memory, or shorten the prompt or max_tokens"
        )
