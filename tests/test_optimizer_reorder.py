"""Predictions against counts by hand, and what each method is to do; see test_optimizer_properties for any table."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import (
    METHODS,
    Cells,
    OptimizerError,
    Ordering,
    encode,
    prefix_hits,
    render,
    reorder,
)

VALUES = st.sampled_from([None, "", "null", "a", "b", "a longer value", 'é\n"\\'])
TABLES = st.integers(0, 5).flatmap(
    lambda columns: st.lists(st.tuples(*[VALUES] * columns), max_size=8).map(
        lambda rows: pa.table({f"c{i}": pa.array([row[i] for row in rows], pa.string()) for i in range(columns)})
    )
)


def common_prefix(left: list[object] | str, right: list[object] | str) -> int:
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


def count_by_hand(cells: Cells, ordering: Ordering) -> tuple[int, int, int, int]:
    """Cells and characters, total and hit, by comparing every prompt with every earlier one."""
    prompts: list[list[tuple[int, int]]] = []
    for row, fields in zip(ordering.rows.tolist(), ordering.fields.tolist()):
        codes = cells.codes[row]
        prompts.append([(column, int(codes[column])) for column in fields if codes[column] >= 0])
    texts = [[cells.texts[column][code].as_py() for column, code in prompt] for prompt in prompts]
    hit_cells = hit_characters = 0
    for last, prompt in enumerate(prompts):
        best = max((common_prefix(prompt, earlier) for earlier in prompts[:last]), default=0)
        hit_cells += best
        joined = ["".join(text) for text in texts[: last + 1]]
        hit_characters += max((common_prefix(joined[last], earlier) for earlier in joined[:last]), default=0)
    return sum(map(len, prompts)), hit_cells, sum(len(t) for text in texts for t in text), hit_characters


@given(TABLES, st.sampled_from(METHODS))
@settings(deadline=None)
def test_predicted_hits_are_those_counted_and_those_found_by_hand(table: pa.Table, method: str) -> None:
    cells = encode(table)
    ordering = reorder(cells, method=method)
    hits = prefix_hits(cells, ordering)
    by_hand = (hits.cells_total, hits.cells_hit, hits.characters_total, hits.characters_hit + hits.characters_partial)
    assert by_hand == count_by_hand(cells, ordering)
    stats = ordering.stats
    assert (stats.units, stats.hit_units, stats.partial_units) == (
        hits.units_total,
        hits.units_hit,
        hits.characters_partial,
    )
    assert stats.hit_rate == hits.hit_rate == hits.character_hit_rate


@given(TABLES, st.sampled_from(METHODS))
@settings(deadline=None)
def test_rendered_prompts_hold_each_value_under_its_name(table: pa.Table, method: str) -> None:
    ordering = reorder(table, method=method)
    rows = table.to_pylist()
    for row, body in zip(ordering.rows.tolist(), render(table, ordering)):
        wanted = {name: value for name, value in rows[row].items() if value is not None}
        assert json.loads("{" + body[:-2] + "}") == wanted


def test_none_keeps_the_table_as_it_is() -> None:
    table = pa.table({"a": [2, 1, 2], "b": ["x", "y", "x"]})
    ordering = reorder(table, method="none")
    assert ordering.rows.tolist() == [0, 1, 2]
    assert ordering.fields.tolist() == [[0, 1]] * 3


def test_the_tree_gives_rows_their_own_field_order() -> None:
    # half of the rows share a long value of one column, half of the other: no fixed order serves both
    table = pa.table(
        {
            "a": ["long value a" * 5] * 8 + [f"{i:060}" for i in range(8)],
            "b": [f"{i:060}" for i in range(8)] + ["long value b" * 5] * 8,
        }
    )
    tree, fixed = reorder(table, method="tree"), reorder(table, method="fixed")
    assert tree.stats.hit_units == 2 * fixed.stats.hit_units == 14 * len('"a": "",\n' + "long value a" * 5)


def test_lengths_decide_what_is_shared_first() -> None:
    table = pa.table({"a": ["x", "x", "y", "y"], "b": ["p", "q", "p", "q"]})
    for heavy in (0, 1):
        lengths = [[1, 1], [1, 1]]
        lengths[heavy] = [9, 9]
        cells = encode(table).with_lengths(lengths)
        ordering = reorder(cells, method="tree")
        assert (ordering.fields[:, 0] == heavy).all()
        assert (ordering.stats.units, ordering.stats.hit_units, ordering.stats.unit) == (40, 18, "tokens")


def test_equal_rows_stand_together_and_count_as_hits() -> None:
    table = pa.table({"a": ["x", "y", "x", "y"]})
    ordering = reorder(table)
    assert ordering.rows.tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])
    assert ordering.stats.num_distinct == 2
    assert (ordering.stats.hit_units, ordering.stats.partial_units) == (20, len('"a": "'))


def test_the_same_input_gives_the_same_ordering() -> None:
    generator = np.random.default_rng(0)
    table = pa.table({f"c{i}": generator.integers(0, 20, 300) for i in range(6)})
    one, two = reorder(table), reorder(table)
    assert np.array_equal(one.rows, two.rows)
    assert np.array_equal(one.fields, two.fields)


def test_partial_prefixes_are_counted_in_characters_not_bytes() -> None:
    cells = encode(pa.table({"a": ["äöü1", "äöü2", "äö€", "äöх"]}))  # the last two differ in a later byte only
    assert prefix_hits(cells, reorder(cells)).characters_partial == sum(
        common_prefix(left, right) for left, right in pairwise(sorted(cells.texts[0].to_pylist()))
    )


def test_long_cells_that_begin_alike() -> None:
    shared = "é" * 1_000_000
    cells = encode(pa.table({"a": [shared + "ä", shared + "ö", shared]}))
    assert prefix_hits(cells, reorder(cells)).characters_partial == 2 * len('"a": "' + shared)


def test_what_is_wrong_is_said() -> None:
    table = pa.table({"a": [1, 2]})
    with pytest.raises(OptimizerError, match="unknown method 'best'; choose one of auto"):
        reorder(table, method="best")
    with pytest.raises(OptimizerError, match="expected a pyarrow Table or Cells, got dict"):
        reorder({"a": [1]})  # type: ignore[arg-type]
    with pytest.raises(OptimizerError, match=r"for \(2, 1\) rows and columns, the table has \(1, 1\)"):
        render(table.slice(1), reorder(table))
    with pytest.raises(OptimizerError, match=r"for \(2, 1\) rows and columns, the cells have \(1, 1\)"):
        prefix_hits(encode(table.slice(1)), reorder(table))


def test_explain_names_rows_units_dependencies_and_methods() -> None:
    table = pa.table(
        {
            "product": ["tea", "hose", "tea", "hose", "tea", "hose"],
            "brand": ["a", "b", "a", "b", "a", "b"],
            "text": ["good", "bad", "fine", "bad", "well", "poor"],
        }
    )
    lines = re.sub(r"\d\.\d\d", "?", reorder(table, capacity=60).explain()).splitlines()
    assert lines == [
        "rows             6 -> 5 distinct, 3 columns",
        "characters       289 -> 105 to compute",
        "prefix hit rate  63.7% predicted, 50.2% in whole cells",
        "method           sort, ? s in all",
        "capacity         60 characters",
        "dependency       product = brand (exact)",
        "",
        "scored  hit rate  seconds",
        "none        0.0%",
        "sort       63.7%     ?",
        "fixed      63.7%     ?",
        "ggr        63.7%     ?",
        "tree       63.7%     ?",
    ]
    stats = reorder(table, method="fixed").stats
    assert list(stats.candidates) == list(stats.candidate_seconds) == ["none", "fixed"]
    assert reorder(table, method="none").stats.chosen == "none"
