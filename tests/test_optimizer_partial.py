"""Texts that begin alike: how far, in characters and in tokens, against plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain, pairwise, takewhile
from operator import eq
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import llmsql.demo
from llmsql.optimizer import METHODS, OptimizerError, encode, prefix_hits, reorder
from llmsql.optimizer.literals import TEXT
from llmsql.optimizer.partial_prefixes import common_prefix_characters, common_prefix_tokens

PIECES = st.sampled_from(["a", "b", "é", "è", "€", "₭", "😀", "😁", "abcdefg", "12345678", "é" * 9, "long " * 20])
TEXTS = st.lists(PIECES, max_size=5).map("".join)
TEMPLATES = st.tuples(st.sampled_from(["", "https://example.org/", "Dear customer, "]), st.sampled_from("abcé")).map(
    "".join
)
TABLES = st.lists(st.tuples(*[st.none() | TEMPLATES] * 3), max_size=8).map(
    lambda rows: pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate("abc")})
)


def same(left: Sequence[object], right: Sequence[object]) -> int:
    return len(list(takewhile(bool, map(eq, left, right))))


@given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=6))
@settings(deadline=None, max_examples=300)
@example("", [("", ""), ("a", ""), ("é", "è"), ("x" * 7 + "é", "x" * 7 + "è")])
@example("known: ", [("x" * 23 + "€" * 400, "x" * 23 + "€" * 399 + "₭"), ("y" * 8, "y" * 8)])
def test_common_prefixes_of_texts(known: str, pairs: list[tuple[str, str]]) -> None:
    texts = pa.array([known + text for pair in pairs for text in pair], TEXT)
    left, right = np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)
    found = common_prefix_characters(texts, left, right, known)
    assert found.tolist() == [len(known) + same(*pair) for pair in pairs]
    assert common_prefix_characters(texts, left, right).tolist() == found.tolist()
    if len(texts) > 2:  # a slice of a larger array
        assert common_prefix_characters(texts[2:], left[:-1], right[:-1], known).tolist() == found.tolist()[1:]


@given(st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=2, max_size=6))
@settings(deadline=None)
def test_common_prefixes_of_tokens(runs: list[list[int]]) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(run) for run in runs])])
    left, right = np.arange(len(runs) - 1), np.arange(1, len(runs))
    found = common_prefix_tokens(np.array(list(chain.from_iterable(runs)), np.int32), offsets, left, right)
    assert found.tolist() == [same(*pair) for pair in pairwise(runs)]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(llmsql.demo.MODEL_FOLDER) / "tokenizer.json"))


def tokens_of(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


@given(TABLES, st.sampled_from(METHODS))
@settings(deadline=None)
def test_predicted_tokens_are_those_that_the_prompts_share(table: pa.Table, method: str) -> None:
    cells = encode(table)
    token_ids = [[np.array(tokens_of(text)) for text in texts.to_pylist()] for texts in cells.texts]
    cells = cells.with_lengths([[len(ids) for ids in column] for column in token_ids])
    ordering = reorder(cells, method=method)
    prompts = []
    for row, fields in zip(ordering.rows.tolist(), ordering.fields.tolist()):
        codes = cells.codes[row]
        prompts.append(tuple(t for c in fields if codes[c] >= 0 for t in token_ids[c][codes[c]].tolist()))
    prefixes = {prompt[:length] for prompt in prompts for length in range(1, len(prompt) + 1)}
    hits = prefix_hits(cells, ordering, token_ids=token_ids)
    assert hits.units_total == sum(map(len, prompts))
    assert hits.units_hit + hits.units_partial == hits.units_total - len(prefixes)
    assert hits.units_hit == ordering.stats.hit_units
    assert prefix_hits(cells, ordering, partial=False, token_ids=token_ids).hit_rate == hits.hit_rate


def test_cells_of_equal_tokens_are_one_in_tokens() -> None:
    cells = encode(pa.table({"a": ["日", "本"], "b": ["x", "x"]})).with_lengths([[2, 2], [1]])
    unknown = [[np.array([1, 0]), np.array([1, 0])], [np.array([2])]]
    ordering = reorder(cells, method="none")
    assert prefix_hits(cells, ordering).units_hit == 0
    assert prefix_hits(cells, ordering, token_ids=unknown).hit_rate == 0.5


def test_without_token_ids_the_shared_tokens_are_estimated_with_care() -> None:
    shared, texts = "https://example.org/a/long/path/", ["x", "y"]
    cells = encode(pa.table({"url": [shared + text for text in texts]}))
    length = int(cells.lengths[0][0])
    assert prefix_hits(cells, reorder(cells)).units_partial == len('"url": "' + shared)
    as_tokens = cells.with_lengths([[length // 4] * 2])
    hits = prefix_hits(as_tokens, reorder(as_tokens))
    assert hits.units_partial == len('"url": "' + shared) * (length // 4) // length - 1
    assert hits.characters_partial == len('"url": "' + shared)


def test_tokens_of_other_cells_are_refused() -> None:
    cells = encode(pa.table({"a": ["x", "y"]})).with_lengths([[1, 2]])
    for token_ids in ([[[1], [1]]], [[[1]]], []):
        with pytest.raises(OptimizerError, match="as many as the cells' lengths say"):
            prefix_hits(cells, reorder(cells), token_ids=[[np.array(run) for run in column] for column in token_ids])


def test_auto_sees_what_only_begins_alike() -> None:
    # no two cells are equal, so the methods differ only in what the first field shares at its begin
    table = pa.table({"id": [str(i) for i in range(20)], "url": [f"https://example.org/{i}" for i in range(20)]})
    ordering = reorder(table)
    assert (ordering.fields[:, 0] == 1).all()
    assert ordering.stats.hit_units == 0
    assert ordering.stats.partial_units >= 19 * len('"url": "https://example.org/')


def test_cells_whose_texts_are_cut_short_count_by_their_lengths() -> None:
    texts = [f"{n % 7} of seven " + "and so on " * (n % 7) for n in range(40)]
    others = [f"no. {n}" for n in range(40)]
    whole = encode(pa.table({"a": texts, "b": others}))
    short = encode(pa.table({"a": [text[:12] for text in texts], "b": others})).with_lengths(
        whole.lengths, "characters"
    )
    found, wanted = reorder(short).stats, reorder(whole).stats
    assert (found.units, found.hit_units, found.partial_units) == (wanted.units, wanted.hit_units, wanted.partial_units)
