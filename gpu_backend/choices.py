"""Score a fixed set of answers in the prompt's own step, without decoding.

When all labels differ in their first token, the logits of the last prompt token decide. Otherwise, or when whole labels
are asked for, the labels without their last tokens follow the prompt as a trie of private tree nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import RequestError
from .request import ChoiceScoring
from .sequence import LabelNode

PROMPT = (-1, 0)
"""The place of the prompt's last token; every other place is (trie node, offset in it)."""


@dataclass(frozen=True)
class ChoicePlan:
    """Which log-probabilities to add up for which label."""

    labels: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]  # empty where a label was given as token ids
    trie: tuple[LabelNode, ...]
    terms: dict[tuple[int, int], list[tuple[int, int]]]  # place -> (label index, token id read from its logits)
    lengths: tuple[int, ...]  # tokens scored of each label, the end of one that begins another included
    first_decides: bool  # all labels differ in their first token


def plan_choices(
    labels: Sequence[Sequence[int]],
    texts: Sequence[str],
    *,
    end_token: int | None,
    vocab_size: int,
    whole: bool = False,
) -> ChoicePlan:
    """`whole` asks for all tokens of the labels even where the first one decides.

    Raises RequestError for no labels, an empty or repeated one, or an id outside the vocabulary.
    """
    ids = [tuple(int(token) for token in label) for label in labels]
    names = [repr(text) if text else str(list(label)) for text, label in zip(texts, ids)]
    if not ids:
        raise RequestError("the list of choices is empty")
    seen: dict[tuple[int, ...], int] = {}
    for index, label in enumerate(ids):
        if not label:
            raise RequestError(f"choice {index} ({names[index]}) has no tokens")
        if min(label) < 0 or max(label) >= vocab_size:
            raise RequestError(f"choice {names[index]} has a token id outside the vocabulary of {vocab_size}")
        if label in seen:
            raise RequestError(f"choices {seen[label]} and {index} are the same: {names[index]}")
        seen[label] = index
    scored = _end_prefixes(ids, names, end_token)
    first_decides = len({label[0] for label in scored}) == len(scored)
    if first_decides and not whole:
        scored = [label[:1] for label in scored]
    trie: list[LabelNode] = []
    places: list[list[tuple[int, int]]] = [[PROMPT] for _ in scored]
    _grow(trie, places, [label[:-1] for label in scored], list(range(len(scored))), -1, 0)
    terms: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, label in enumerate(scored):
        for place, token in zip(places[index], label):
            terms.setdefault(place, []).append((index, token))
    return ChoicePlan(tuple(ids), tuple(texts), tuple(trie), terms, tuple(map(len, scored)), first_decides)


class ChoiceScores:
    """What is known so far of one request's labels."""

    def __init__(self, plan: ChoicePlan, scoring: ChoiceScoring) -> None:
        self.plan = plan
        self.scoring = scoring
        self.log_probs: npt.NDArray[np.float64] = np.zeros(len(plan.labels))  # of each label's tokens, added up
        self._first: npt.NDArray[np.float64] = np.zeros(len(plan.labels))  # of each label's first token

    def add(self, place: tuple[int, int], label: int, log_prob: float) -> None:
        """Take the log-probability of the label's token that was read at `place`."""
        self.log_probs[label] += log_prob
        if place == PROMPT:
            self._first[label] = log_prob

    def scores(self) -> npt.NDArray[np.float64]:
        """What is compared, one number per label; see `Request.choice_scoring`."""
        if self.scoring == "mean":
            means: npt.NDArray[np.float64] = self.log_probs / np.array(self.plan.lengths)
            return means
        return self._first if self.scoring == "auto" and self.plan.first_decides else self.log_probs


def _end_prefixes(labels: list[tuple[int, ...]], names: list[str], end_token: int | None) -> list[tuple[int, ...]]:
    """A label that begins another one is compared with its end, or it could never lose."""
    scored = []
    for index, label in enumerate(labels):
        longer = [i for i, other in enumerate(labels) if i != index and other[: len(label)] == label]
        if longer and end_token is None:
            raise RequestError(
                f"choice {names[index]} begins choice {names[longer[0]]}, and the model has no end-of-turn token to"
                " tell them apart"
            )
        scored.append((*label, end_token) if longer and end_token is not None else label)
    return scored


def _grow(
    trie: list[LabelNode],
    places: list[list[tuple[int, int]]],
    runs: list[tuple[int, ...]],
    members: list[int],
    parent: int,
    depth: int,
) -> None:
    """Add the trie below `parent` for the labels `members`, which agree up to `depth`."""
    by_token: dict[int, list[int]] = {}
    for index in members:
        if len(runs[index]) > depth:
            by_token.setdefault(runs[index][depth], []).append(index)
    for same in by_token.values():
        first, end = runs[same[0]], depth + 1
        shortest = min(len(runs[index]) for index in same)
        while end < shortest and all(runs[index][end] == first[end] for index in same):
            end += 1
        node = len(trie)
        trie.append(LabelNode(parent, first[depth:end]))
        for index in same:
            places[index].extend((node, offset) for offset in range(end - depth))
        _grow(trie, places, runs, same, node, end)
