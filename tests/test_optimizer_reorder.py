"""Orderings are permutations, predictions are counts, and bad input is ordinary input."""

from __future__ import annotations

import json
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
RICH_TABLE = pa.table(
    {
        "nan": pa.array([float("nan"), -0.0, 0.0, None]),
        "text": ["", "null", None, "x" * 10_000],
        "list": [[["a"]], [[]], [None], None],
        "struct": [{"a": 1, "b": None}, {"a": None, "b": "x"}, None, {"a": 1, "b": None}],
        "binary": [b"", b"\xff\x00", None, b""],
        "nothing": pa.nulls(4),
    }
)


def assert_permutation(table: pa.Table, ordering: Ordering) -> None:
    assert sorted(ordering.rows.tolist()) == list(range(table.num_rows))
    assert ordering.fields.shape == (table.num_rows, table.num_columns)
    assert all(sorted(fields) == list(range(table.num_columns)) for fields in ordering.fields.tolist())


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
def test_any_table_gives_a_permutation_of_rows_and_fields(table: pa.Table, method: str) -> None:
    ordering = reorder(table, method=method)
    assert_permutation(table, ordering)
    assert ordering.stats.num_rows == table.num_rows
    assert len(render(table, ordering)) == table.num_rows


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


@given(TABLES)
@settings(deadline=None)
def test_auto_is_at_least_as_good_as_every_method(table: pa.Table) -> None:
    cells = encode(table)
    auto = reorder(cells, method="auto").stats.hit_rate
    assert all(reorder(cells, method=method).stats.hit_rate <= auto for method in METHODS)


@given(TABLES, st.sampled_from(METHODS))
@settings(deadline=None)
def test_rendered_prompts_hold_each_value_under_its_name(table: pa.Table, method: str) -> None:
    ordering = reorder(table, method=method)
    rows = table.to_pylist()
    for row, body in zip(ordering.rows.tolist(), render(table, ordering)):
        wanted = {name: value for name, value in rows[row].items() if value is not None}
        assert json.loads("{" + body[:-2] + "}") == wanted


@given(TABLES)
@settings(deadline=None)
def test_no_earlier_row_shares_more_characters_than_the_row_before(table: pa.Table) -> None:
    bodies = render(table, reorder(table, method="tree"))
    for position in range(1, len(bodies)):
        best = max(common_prefix(bodies[position], earlier) for earlier in bodies[:position])
        assert common_prefix(bodies[position], bodies[position - 1]) == best


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ophr"])
@pytest.mark.parametrize(
    "table",
    [
        pa.table({}),
        pa.table({"a": pa.array([], pa.string())}),
        pa.table({"a": ["x"]}),
        pa.table({"a": ["x"] * 50, "b": [1] * 50}),
        pa.table({"a": list(range(50)), "b": [str(i) for i in range(50)]}),
        pa.table([pa.nulls(3), pa.array([1, 1, 2])], names=["same", "same"]),
        pa.table({f"c{i}": [i, i % 7, 0] for i in range(1_000)}),
        RICH_TABLE,
    ],
    ids=["nothing", "no rows", "one row", "all equal", "all distinct", "same names", "1000 columns", "rich types"],
)
def test_odd_tables(table: pa.Table, method: str) -> None:
    ordering = reorder(table, method=method)
    assert_permutation(table, ordering)
    assert len(render(table, ordering)) == table.num_rows
    assert 0 <= ordering.stats.hit_rate <= 1
    assert "hit rate" in ordering.explain()


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
