"""Score a fixed set of answers in the prompt's own step, without decoding.

When all labels differ in their first token, the logits of the last prompt token decide. Otherwise the labels, without
their last tokens, follow the prompt as a trie of private tree nodes, and whole log-probabilities are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import RequestError
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


def plan_choices(
    labels: Sequence[Sequence[int]], texts: Sequence[str], *, end_token: int | None, vocab_size: int
) -> ChoicePlan:
    """Raises RequestError for no labels, an empty or repeated one, or an id outside the vocabulary."""
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
    if len({label[0] for label in scored}) == len(scored):
        terms = {PROMPT: [(index, label[0]) for index, label in enumerate(scored)]}
        return ChoicePlan(tuple(ids), tuple(texts), (), terms)
    trie: list[LabelNode] = []
    places: list[list[tuple[int, int]]] = [[PROMPT] for _ in scored]
    _grow(trie, places, [label[:-1] for label in scored], list(range(len(scored))), -1, 0)
    all_terms: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, label in enumerate(scored):
        for place, token in zip(places[index], label):
            all_terms.setdefault(place, []).append((index, token))
    return ChoicePlan(tuple(ids), tuple(texts), tuple(trie), all_terms)


def best_choice(log_probs: np.ndarray) -> int:
    """The most likely label; the first of equals."""
    return int(np.argmax(log_probs))


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
