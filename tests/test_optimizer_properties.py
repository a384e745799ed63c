"""Any table, any method: a permutation, prompts that say what the table says, and the hit rate that was predicted.

The rate is counted on a trie of the rendered prompts, character by character, with nothing of the optimizer in it.
"""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimizer_cells import KINDS

from llmsql.optimizer import METHODS, Ordering, arrange_items, encode, render, reorder

METHODS_OF_LARGE_TABLES = [method for method in METHODS if method != "ophr"]


def columns(rows: int) -> st.SearchStrategy[pa.Array]:
    return st.sampled_from(KINDS).flatmap(
        lambda kind: st.lists(st.none() | kind[1], min_size=rows, max_size=rows).map(
            lambda values: pa.array(values, kind[0])
        )
    )


TABLES = st.tuples(st.integers(0, 6), st.integers(0, 4)).flatmap(
    lambda shape: st.lists(columns(shape[0]), min_size=shape[1], max_size=shape[1]).map(
        lambda arrays: pa.table(arrays, names=[f"column {i}" for i in range(len(arrays))])
    )
)


def trie_size(prompts: list[str]) -> int:
    """Characters that are not the continuation of an earlier prompt's prefix."""
    root: dict[str, dict] = {}
    size = 0
    for prompt in prompts:
        node = root
        for character in prompt:
            if character not in node:
                node[character] = {}
                size += 1
            node = node[character]
    return size


def check(table: pa.Table, ordering: Ordering) -> list[str]:
    """The prompts, after looking at all that must hold of them; returns them in the order shown."""
    assert sorted(ordering.rows.tolist()) == list(range(table.num_rows))
    assert ordering.fields.shape == (table.num_rows, table.num_columns)
    assert all(sorted(fields) == list(range(table.num_columns)) for fields in ordering.fields.tolist())
    prompts = render(table, ordering)
    cells = encode(table)
    for row, fields, prompt in zip(ordering.rows.tolist(), ordering.fields.tolist(), prompts):
        codes = cells.codes[row].tolist()
        assert prompt == "".join(cells.texts[c][codes[c]].as_py() for c in fields if codes[c] >= 0)
        json.loads("{" + prompt.removesuffix(",\n") + "}")
    return prompts


@given(TABLES, st.sampled_from(METHODS))
@settings(deadline=None, max_examples=150)
def test_tables_of_all_types(table: pa.Table, method: str) -> None:
    ordering = reorder(table, method=method)
    prompts = check(table, ordering)
    stats = ordering.stats
    assert stats.units == sum(map(len, prompts))
    assert stats.computed_units == trie_size(prompts)
    assert reorder(table).stats.computed_units <= stats.computed_units
    if method != "none":  # rows that share more stand closer: a cache that knows only the row before finds it all
        assert stats.computed_units == sum(map(len, prompts)) - sum(shared(*pair) for pair in pairwise(prompts))


def shared(left: str, right: str) -> int:
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)


NAN = float("nan")
LONG = "long text, " * 950_000  # 10 MB
BAD_INPUT = {
    "zero rows": pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.list_(pa.int8()))}),
    "zero columns": pa.table({"a": [1, 2]}).select([]),
    "one row": pa.table({"a": ["x"], "b": [None]}),
    "all equal": pa.table({"a": ["x"] * 9, "b": [1] * 9}),
    "all distinct": pa.table({"a": [f"{i}" for i in range(9)], "b": [f"x{i}" for i in range(9)]}),
    "1,000 columns": pa.table({f"c{i}": [i, i % 7, 0, None] for i in range(1_000)}),
    "null and texts": pa.table({"a": [None, "", "null", "NULL", "None", '"', "\\", "\n"], "b": ["same"] * 8}),
    "floats": pa.table({"a": [NAN, -NAN, 0.0, -0.0, None, 1.0], "b": pa.array([1, 2, 1, 2, 1, 2], pa.float16())}),
    "unicode": pa.table({"a": ["é", "é", "\u2028", "\ud7ff", "😀", "\x00", "😁"], "b": ["\x1f"] * 7}),
    "dictionary": pa.table({"a": pa.array(["x", None, "x", "y"]).dictionary_encode(), "b": pa.array(range(4))}),
    "large string": pa.table({"a": pa.array(["x", "y", "x", None], pa.large_string()), "b": pa.nulls(4)}),
    "chunks": pa.table({"a": pa.chunked_array([["x"], [], ["y", "x"]]), "b": pa.chunked_array([[1, 2], [3]])}),
    "10 MB": pa.table({"a": [LONG + "1", LONG + "2", "short", LONG + "1"], "b": ["p", "q", "p", "q"]}),
    "same names": pa.table([pa.nulls(3), pa.array([1, 1, 2])], names=["same", "same"]),
    "names": pa.table([["x", "x"], [1, 2], ["x", "y"]], names=['a"\n', "", "a"]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_ordinary_input(name: str, method: str) -> None:
    table = BAD_INPUT[name]
    ordering = reorder(table, method=method)
    if name != "10 MB":
        assert ordering.stats.computed_units == trie_size(check(table, ordering))
    assert 0 <= ordering.stats.hit_rate <= 1
    assert "prefix hit rate" in ordering.explain()


@pytest.mark.parametrize("method", ["auto", "fixed"])
def test_large_cells_are_counted_where_they_begin_alike(method: str) -> None:
    stats = reorder(BAD_INPUT["10 MB"], method=method).stats
    assert stats.hit_units + stats.partial_units >= 2 * len(LONG)


@given(st.integers(0, 2**32), st.integers(9, 60), st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_tables_beyond_the_exact_method(seed: int, rows: int, num_columns: int) -> None:
    generator = np.random.default_rng(seed)
    table = pa.table(
        {
            f"c{i}": [f"{'value ' * int(generator.integers(1, 5))}{v}" for v in generator.zipf(1.5, rows) % 20]
            for i in range(num_columns)
        }
    )
    computed = {}
    for method in METHODS_OF_LARGE_TABLES:
        ordering = reorder(table, method=method, seed=seed % 7)
        computed[method] = ordering.stats.computed_units
        assert computed[method] == trie_size(check(table, ordering))
        assert ordering.stats.candidates[ordering.stats.chosen] == ordering.stats.units - computed[method]
    assert computed["auto"] == min(computed.values())
    stats = reorder(table, seed=seed % 7).stats
    assert {name: stats.units - hits for name, hits in stats.candidates.items()} == {
        name: computed[name] for name in stats.candidates
    }


@given(st.lists(st.lists(st.none() | st.lists(st.none() | st.integers(0, 2), max_size=2), max_size=3), max_size=6))
@settings(deadline=None, max_examples=50)
def test_lists_of_lists_whose_items_may_move(rows: list[list[list[int | None] | None]]) -> None:
    table = pa.table({"a": pa.array(rows, pa.list_(pa.list_(pa.int8()))), "b": [i % 2 for i in range(len(rows))]})
    ordering = reorder(table, unordered=["a"])
    prompts = check(arrange_items(table, ordering), Ordering(ordering.rows, ordering.fields, ordering.stats))
    assert prompts == render(table, ordering)
    assert ordering.stats.computed_units == trie_size(prompts)
