"""One request inside the engine, from its arrival to its completion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .node import Node


@dataclass(eq=False)
class Sequence:
    """What the tree and the scheduler know of a request; who fills a field and when stands beside it.

    `payload` is the engine's own (the request, its stream, its choices): neither tree nor scheduler looks into it.
    """

    token_ids: npt.NDArray[np.int32]  # [prompt]
    max_tokens: int  # output tokens at most
    labels: tuple[LabelNode, ...] = ()  # choices that need more than the prompt's last logits, as a trie, parents first
    scores_only: bool = False  # the answer is a choice: nothing is decoded
    payload: object = None
    leaf: Node = field(init=False)  # PrefixTree.insert: where the prompt ends
    tail: Node | None = None  # Scheduler, before admission: the generated tokens that need KV
    label_nodes: list[Node] = field(default_factory=list)  # Scheduler, before admission: one for each of `labels`
    prompt_done: bool = False  # Scheduler.commit: the logits of the last prompt token were computed
    num_generated: int = 0  # Scheduler.append
    started: bool = False  # Scheduler, at admission

    def private_nodes(self) -> list[Node]:
        """The request's own nodes below its leaf, parents first."""
        return self.label_nodes if self.tail is None else [self.tail]


@dataclass(frozen=True)
class LabelNode:
    """A run of label tokens whose logits are needed; `parent` is an index into the trie, -1 for the prompt's leaf."""

    parent: int
    token_ids: tuple[int, ...]
