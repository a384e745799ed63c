"""Which tokens run in the next step: decode rows first, then prompt chunks in depth-first order.

Nothing here changes between `schedule` and `commit`, except that requests are admitted: a step that fails on the
device can be dropped and scheduled again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .sequence import Sequence
from .tree import Node, PrefixTree


@dataclass(eq=False)
class Chunk:
    """Tokens `start .. start + length - 1` of a node, to be run through the model in one step."""

    node: Node
    start: int
    length: int
    sequences: list[Sequence] = field(default_factory=list)  # who reads the logits
    all_logits: bool = False  # of every token (labels); otherwise of the last one, if anybody reads them
    again: bool = False  # the KV is in the pool already, only the logits are wanted
    generated: bool = False  # output tokens, not of the prompt or a label

    @property
    def end(self) -> int:
        """Where the chunk ends inside its node."""
        return self.start + self.length


@dataclass(eq=False)
class Step:
    """One forward pass; every node appears in at most one chunk, parents before their children."""

    chunks: list[Chunk] = field(default_factory=list)
    num_tokens: int = 0
    num_logits: int = 0
    prefilled: list[Sequence] = field(default_factory=list)  # their prompt and labels are complete after this step
    rejected: list[tuple[Sequence, str]] = field(default_factory=list)  # they never fit; not in the tree any more


class Scheduler:
    """Admits waiting requests, cuts the work into steps of at most `max_tokens` tokens and `max_logits` logit rows.

    Admission gives a request all the blocks it can ever need: those of the nodes on its path that have none yet, and
    those of `max_tokens` output tokens. So a running request is never preempted.
    """

    def __init__(
        self, tree: PrefixTree, *, max_tokens: int, max_logits: int, max_running: int, share_in_step: bool = True
    ) -> None:
        self.tree = tree
        self.max_tokens = max_tokens
        self.max_logits = max_logits
        self.max_running = max_running
        self.share_in_step = share_in_step
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
        step = _StepBuilder(self.max_tokens, self.max_logits, self.share_in_step)
        for sequence in self._decoding:
            if not step.add_decode(sequence):
                break
        for sequence in self._prefilling:
            if not step.add_prompt(sequence):
                break
        rejected: list[tuple[Sequence, str]] = []
        while not step.full and self.num_running < self.max_running:
            head = self.tree.next_waiting()
            if head is None:
                break
            if not self._fits(head):
                if self.num_running > 0:
                    break  # wait until running requests free their blocks
                if not self._make_room(head):
                    rejected.append((head, self._too_large(head)))
                    self.tree.remove(head, waiting=True)
                    continue
            self._admit(head)
            if not step.add_prompt(head):
                break
        result = step.build(rejected)
        assert result.chunks or rejected or self.num_running + self.num_waiting == 0, "no progress"
        return result if result.chunks or rejected else None

    def commit(self, step: Step) -> None:
        """Record that the step ran: its tokens' KV is in the pool."""
        for chunk in step.chunks:
            chunk.node.num_computed = max(chunk.node.num_computed, chunk.end)
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
        end = tail.length + len(added)
        assert added, "a row without new tokens would wait for ever"
        assert end <= tail.capacity, f"{end} output tokens, room for {tail.capacity}"
        tail.tokens[tail.length : end] = added
        tail.length = end
        sequence.num_generated += len(added)

    def remove(self, sequence: Sequence) -> None:
        """Take out a finished or cancelled request, running or waiting, and free what only it needed."""
        self._prefilling.pop(sequence, None)
        self._decoding.pop(sequence, None)
        self.tree.remove(sequence, waiting=not sequence.started)

    def check(self) -> None:
        """Assert the invariants of the scheduler, the tree and the blocks."""
        self.tree.check()
        assert not set(self._prefilling) & set(self._decoding)
        running = [*self._prefilling, *self._decoding]
        assert len(running) <= self.max_running
        assert self.tree.root.num_requests == self.num_running + self.num_waiting, "a request is lost or counted twice"
        for sequence in running:
            assert sequence.started
            for node in [*sequence.leaf.path(), *sequence.private_nodes()]:
                assert node.blocks, f"{node} of a running request has no blocks"
        for sequence in self._decoding:
            assert sequence.prompt_done
            assert sequence.leaf.num_computed == sequence.leaf.length
        if self.num_running + self.num_waiting == 0:
            assert self.tree.pool.num_used == 0, f"{self.tree.pool.num_used} blocks are held though nothing is left"

    # Below: admission.

    def _fits(self, sequence: Sequence) -> bool:
        return self.tree.blocks_needed(self._nodes_of(sequence)) <= self.tree.pool.num_free

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

    def _admit(self, sequence: Sequence) -> None:
        self.tree.allocate(self._nodes_of(sequence))
        self.tree.start(sequence)
        sequence.started = True
        self._prefilling[sequence] = None

    def _make_room(self, sequence: Sequence) -> bool:
        """Drop KV that waits for later requests, since nothing runs; False if the request does not fit even then."""
        self.tree.drop_kv(keep=self._nodes_of(sequence))
        if not self._fits(sequence):
            self.tree.drop_kv()  # what it shares may be scattered over more blocks than a contiguous copy
        return self._fits(sequence)

    def _too_large(self, sequence: Sequence) -> str:
        pool, prompt = self.tree.pool, len(sequence.token_ids)
        needed = self.tree.blocks_needed(self._nodes_of(sequence))
        private = sum(node.capacity for node in sequence.private_nodes())
        what = "choice labels" if sequence.scores_only else "output"
        return (
            f"the request needs {needed} KV blocks of {pool.block_size} tokens for {prompt} prompt tokens and {private}"
            f" tokens of {what}, and the whole pool has {pool.num_blocks} ({pool.num_blocks * pool.block_size} tokens):"
            " raise kv_memory, or shorten the prompt or max_tokens"
        )


class _StepBuilder:
    """A step while it is being filled."""

    def __init__(self, max_tokens: int, max_logits: int, share_in_step: bool) -> None:
        self.tokens_left = max_tokens
        self.logits_left = max_logits
        self.share_in_step = share_in_step
        self.chunks: dict[Node, Chunk] = {}
        self.owners: dict[Node, Sequence] = {}
        self.prefilled: list[Sequence] = []
        self.num_tokens = 0
        self.num_logits = 0

    @property
    def full(self) -> bool:
        return self.tokens_left == 0 or self.logits_left == 0

    def build(self, rejected: list[tuple[Sequence, str]]) -> Step:
        return Step(list(self.chunks.values()), self.num_tokens, self.num_logits, self.prefilled, rejected)

    def add_decode(self, sequence: Sequence) -> bool:
        """Run the output tokens that have no KV yet; False if the step is full."""
        tail = sequence.tail
        assert tail is not None
        if self.full:
            return False
        length = min(tail.length - tail.num_computed, self.tokens_left)
        chunk = self._add(sequence, tail, tail.num_computed, length)
        chunk.generated = True
        if chunk.end == tail.length:
            self._read_last(chunk, sequence)
        return True

    def add_prompt(self, sequence: Sequence) -> bool:
        """Run what is left of the prompt's path and of the labels; False if the step is full."""
        if not self.share_in_step and self._computed_by_other(sequence):
            return True  # comes in a later step
        if not sequence.prompt_done and not self._add_path(sequence):
            return False
        for node in sequence.label_nodes:
            length = min(node.length - node.num_computed, self.tokens_left, self.logits_left)
            if length > 0:
                chunk = self._add(sequence, node, node.num_computed, length)
                chunk.all_logits = True
                chunk.sequences.append(sequence)
                self.logits_left -= length
                self.num_logits += length
            if self._end(node) < node.length:
                return False
        self.prefilled.append(sequence)
        return True

    def _add_path(self, sequence: Sequence) -> bool:
        leaf = sequence.leaf
        missing: list[Node] = []
        node: Node | None = leaf
        while node is not None and self._end(node) < node.length:
            missing.append(node)
            node = node.parent
        for node in reversed(missing):
            assert node not in self.chunks, "a chunk is cut only where the step is full"
            wanted = node.length - node.num_computed
            if node is leaf and self.logits_left == 0:
                wanted -= 1  # its last token waits until there is room for its logits
            length = min(wanted, self.tokens_left)
            if length > 0:
                self._add(sequence, node, node.num_computed, length)
            if length < node.length - node.num_computed:
                return False
        chunk = self.chunks.get(leaf)
        if chunk is None:
            if self.full:
                return False
            chunk = self._add(
                sequence, leaf, leaf.length - 1, 1
            )  # computed earlier for others: only logits are missing
            chunk.again = True
        return self._read_last(chunk, sequence)

    def _add(self, sequence: Sequence, node: Node, start: int, length: int) -> Chunk:
        chunk = Chunk(node, start, length)
        self.chunks[node] = chunk
        self.owners[node] = sequence
        self.tokens_left -= length
        self.num_tokens += length
        return chunk

    def _read_last(self, chunk: Chunk, sequence: Sequence) -> bool:
        if not chunk.sequences:
            if self.logits_left == 0:
                return False
            self.logits_left -= 1
            self.num_logits += 1
        chunk.sequences.append(sequence)
        return True

    def _end(self, node: Node) -> int:
        chunk = self.chunks.get(node)
        return node.num_computed if chunk is None else max(node.num_computed, chunk.end)

    def _computed_by_other(self, sequence: Sequence) -> bool:
        node: Node | None = sequence.leaf
        while node is not None and node.num_computed < node.length:
            if node in self.owners and self.owners[node] is not sequence:
                return True
            node = node.parent
        return False
