"""Batches of tokenized examples, with the places that the auxiliary losses need."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tasks import ASKED, TASKS, Example, cell, make_example
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmsql.demo.products import CATEGORIES, GENRES
from llmsql.demo.reviews import SENTIMENTS, TOPICS

#: until this step, weights of TASKS in their order, lengths of rows
CURRICULUM: tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...] = (
    (150, (5, 0, 1, 1, 3, 1, 0, 0), (0.0,)),
    (300, (4, 2, 2, 2, 3, 2, 1, 1), (0.0,)),
    (600, (3, 2, 2, 2, 3, 2, 2, 3), (0.0, 0.0, 0.0, 0.3, 0.6)),
    (1500, (2, 1, 2, 1, 2, 2, 2, 5), (0.0, 0.3, 0.6, 1.0)),
    (10**9, (2, 1, 2, 2, 2, 2, 2, 6), (0.0, 0.3, 0.6, 1.0) * 10 + (1.6, 1.6, 2.5, 4.0, 8.0)),
)

#: Facts that a probe reads off a hidden state: name -> number of classes.
PROBES = {
    "sentiment": len(SENTIMENTS),
    "category": len(CATEGORIES) + len(GENRES),
    "children": 2,
    "asked": len(ASKED),
    "topics": len(TOPICS),
    "opinion": len(SENTIMENTS) + 1,  # of one sentence, the last class is none
    "aspect": len(TOPICS) + 1,
}
_CATEGORIES = [*CATEGORIES, *GENRES]

Place = tuple[int, int, int]  #: row, token that looks, token looked at


@dataclass(frozen=True)
class Row:
    """One tokenized example; places are token positions."""

    task: str
    token_ids: list[int]
    fields: int  #: start of the fields
    answer: int  #: start of the answer
    names: list[tuple[int, int]]  #: (token of a field, last token of its name)
    sources: list[tuple[int, int]]  #: (token of the answer, token that it is copied from)
    evidence: list[tuple[int, int]]  #: (last token of the prompt, end of the field that decides)
    facts: list[tuple[str, int, int]]  #: (probe, token, class); for topics a bit mask


@dataclass(frozen=True)
class Batch:
    """Padded rows: answers are what is learnt, the text before them is learnt lightly."""

    token_ids: Tensor  # [rows, tokens]
    positions: Tensor  # [rows, tokens]
    is_answer: Tensor  # [rows, tokens] bool: this token is part of the answer
    is_text: Tensor  # [rows, tokens] bool: this token is part of the fields
    tasks: list[str]
    names: list[Place]
    sources: list[Place]
    evidence: list[Place]
    facts: dict[str, list[Place]]  #: probe -> (row, token, class)


def make_batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, step: int, steps: int, batch_tokens: int
) -> Iterator[Batch]:
    """Batches for the steps from `step` to `steps`, of about `batch_tokens` tokens, in rows of similar length."""
    rng = random.Random(f"train {seed}")
    waiting: dict[int, list[Row]] = {}
    while step < steps:
        # rows wait until a batch of their padded length is full; few distinct shapes keep the matrix kernels cached
        _, weights, lengths = next(entry for entry in CURRICULUM if step < entry[0])
        examples = [make_example(rng, task, length=rng.choice(lengths)) for task in rng.choices(TASKS, weights, k=500)]
        for row in tokenized(tokenizer, examples):
            width = -(-len(row.token_ids) // 16) * 16
            waiting.setdefault(width, []).append(row)
            if len(waiting[width]) * width > batch_tokens - width:
                yield _padded(waiting.pop(width), width, rng, tokenizer.pad_token_id)
                step += 1
                if step == steps:
                    return


def tokenized(tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> list[Row]:
    """The examples as rows: prompt, answer, end of turn. Pieces are tokenized apart, so that their places are known."""
    pieces: list[str] = []
    for example in examples:
        question, rest = example.head.split("\n", 1)
        pieces += [f"<|user|>{question}\n", rest, *(cell(*field) for field in example.fields)]
        pieces += ["}<|end|><|assistant|>", example.answer + "<|end|>"]
    encodings = tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)
    tokens = zip(encodings["input_ids"], encodings["offset_mapping"])
    colon, quote = tokenizer.convert_tokens_to_ids(['":', '\u0120"'])
    return [_row(example, tokens, colon, quote) for example in examples]


def _row(example: Example, pieces: Iterator[tuple[list[int], list[tuple[int, int]]]], colon: int, quote: int) -> Row:
    notes = example.notes
    assert notes is not None
    prompt = list(next(pieces)[0])
    facts = [("asked", len(prompt) - 1, ASKED.index(notes.asked))]
    labels_at = len(prompt)
    prompt += next(pieces)[0]
    fields_at = len(prompt)
    names, ends, values = [], {}, {}
    for name, _ in example.fields:
        ids, offsets = next(pieces)
        after_name = ids.index(colon) if colon in ids else 1
        value = after_name + (2 if ids[after_name + 1] == quote else 1)
        start, ends[name], values[name] = len(prompt), len(prompt) + len(ids) - 1, len(prompt) + value
        names += [(values[name], start + after_name - 1), (ends[name], start + after_name - 1)]
        prompt += ids
        if name == notes.text:
            shift = len(name) + 5  # of the text in its cell: two quotes, colon, space, quote
            for end, opinion, aspect in notes.sentences:
                place = start + next(place for place, (_, to) in enumerate(offsets) if to >= end + shift)
                facts.append(("opinion", place, SENTIMENTS.index(opinion) if opinion else len(SENTIMENTS)))
                facts.append(("aspect", place, TOPICS.index(aspect) if aspect else len(TOPICS)))
    prompt += next(pieces)[0]
    answer_ids = next(pieces)[0]
    answer = len(prompt)
    if notes.text in ends and notes.sentiment:
        facts.append(("sentiment", ends[notes.text], SENTIMENTS.index(notes.sentiment)))
        facts.append(("topics", ends[notes.text], sum(1 << TOPICS.index(topic) for topic in notes.topics)))
    if notes.description in ends:
        facts.append(("category", ends[notes.description], _CATEGORIES.index(notes.category)))
        facts.append(("children", ends[notes.description], int(notes.suitable_for_children)))
    sources = []
    if example.choices is None:
        start = values[notes.evidence]
        if ends[notes.evidence] - start == len(answer_ids) - 1:
            sources = [(answer + place, start + place) for place in range(len(answer_ids))]
    elif example.choices != ("Yes", "No"):
        for start in range(labels_at, fields_at - len(answer_ids)):
            if prompt[start : start + len(answer_ids) - 1] == answer_ids[:-1] and prompt[start - 1] == quote:
                sources = [(answer + place, start + place) for place in range(1, len(answer_ids))]
    return Row(
        task=example.task,
        token_ids=prompt + answer_ids,
        fields=fields_at,
        answer=answer,
        names=names,
        sources=sources,
        evidence=[(answer - 1, ends[notes.evidence])] if example.choices and notes.evidence in ends else [],
        facts=facts,
    )


def _padded(rows: list[Row], longest: int, rng: random.Random, pad: int) -> Batch:
    token_ids = torch.full((len(rows), longest), pad)
    positions = torch.arange(longest).repeat(len(rows), 1)
    is_answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    is_text = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        token_ids[place, : len(row.token_ids)] = torch.tensor(row.token_ids)
        is_answer[place, row.answer : len(row.token_ids)] = True
        is_text[place, row.fields : row.answer] = True
        if rng.random() < 0.4:
            for _ in range(rng.choice((1, 1, 2, 4))):
                positions[place, rng.randrange(1, longest) :] += int(math.exp(rng.uniform(0.0, math.log(3500.0))))
    return Batch(
        token_ids,
        positions,
        is_answer,
        is_text,
        [row.task for row in rows],
        [(place, *pair) for place, row in enumerate(rows) for pair in row.names],
        [(place, *pair) for place, row in enumerate(rows) for pair in row.sources],
        [(place, *pair) for place, row in enumerate(rows) for pair in row.evidence],
        {
            probe: [(place, *fact) for place, row in enumerate(rows) for name, *fact in row.facts if name == probe]
            for probe in PROBES
        },
    )
