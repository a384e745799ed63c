"""One step: which tokens run through the model together, and whose logits are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .node import Node
from .sequence import Sequence


@dataclass(eq=False, slots=True)
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
    num_prompt_tokens: int = 0
    num_label_tokens: int = 0
    tree_version: int = 0  # where it is the same, so are the paths of nodes and their first blocks
    prefilled: list[Sequence] = field(default_factory=list)  # their prompt and labels are complete after this step
    rejected: list[tuple[Sequence, str]] = field(default_factory=list)  # they never fit; not in the tree any more
    owners: dict[Node, Sequence] = field(default_factory=dict)  # for whom chunks of prompts and labels were added

    def num_prompt_tokens_by_owner(self) -> Iterator[tuple[Sequence, int]]:
        """Who the step's prompt tokens are computed for: the first that needs them; together `num_prompt_tokens`."""
        for chunk in self.chunks:
            if not chunk.generated and not chunk.all_logits:
                yield self.owners[chunk.node], chunk.length


class StepBuilder:
    """A step while it is being filled."""

    def __init__(self, max_tokens: int, max_logits: int, share_in_step: bool) -> None:
        self.max_tokens = self.tokens_left = max_tokens
        self.max_logits = self.logits_left = max_logits
        self.share_in_step = share_in_step
        self.generated: list[Chunk] = []
        self.chunks: dict[Node, Chunk] = {}  # of prompts and labels
        self.owners: dict[Node, Sequence] = {}
        self.prefilled: list[Sequence] = []
        self.num_generated_tokens = 0
        self.num_label_tokens = 0

    @property
    def full(self) -> bool:
        """Whether no token, or no row of logits, can be added."""
        return self.tokens_left == 0 or self.logits_left == 0

    def build(self, rejected: list[tuple[Sequence, str]], tree_version: int) -> Step:
        """The step as it is now."""
        num_tokens = self.max_tokens - self.tokens_left
        return Step(
            [*self.generated, *self.chunks.values()],
            num_tokens,
            self.max_logits - self.logits_left,
            num_tokens - self.num_generated_tokens - self.num_label_tokens,
            self.num_label_tokens,
            tree_version,
            self.prefilled,
            rejected,
            self.owners,
        )

    def add_generated(
        self, sequences: Iterable[Sequence], block_size: int, grow: Callable[[Sequence, int], bool]
    ) -> None:
        """Run the output tokens that have no KV yet, as long as there is room.

        `grow` gives a sequence's tail the blocks for so many tokens, or says that it must stand still.
        """
        tokens_left, logits_left = self.tokens_left, self.logits_left
        for sequence in sequences:
            if tokens_left == 0 or logits_left == 0:
                break
            tail = sequence.tail
            assert tail is not None
            start, end = tail.num_computed, tail.length
            if end - start > tokens_left:
                end = start + tokens_left
            if tail.offset + end > len(tail.blocks) * block_size and not grow(sequence, end):
                continue
            tokens_left -= end - start
            if end == tail.length:
                logits_left -= 1
                self.generated.append(Chunk(tail, start, end - start, [sequence], False, False, True))
            else:
                self.generated.append(Chunk(tail, start, end - start, [], False, False, True))
        self.num_generated_tokens = self.tokens_left - tokens_left
        self.tokens_left, self.logits_left = tokens_left, logits_left

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
                self.num_label_tokens += length
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
            chunk = self._add(sequence, leaf, leaf.length - 1, 1)
            chunk.again = True  # computed earlier for others: only logits are missing
        return self._read_last(chunk, sequence)

    def _add(self, sequence: Sequence, node: Node, start: int, length: int) -> Chunk:
        chunk = Chunk(node, start, length)
        self.chunks[node] = chunk
        self.owners[node] = sequence
        self.tokens_left -= length
        return chunk

    def _read_last(self, chunk: Chunk, sequence: Sequence) -> bool:
        if not chunk.sequences:
            if self.logits_left == 0:
                return False
            self.logits_left -= 1
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
