"""Deduplication, statistics and functional dependencies against slow and plain definitions."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import column_statistics, deduplicate, encode, find_dependencies

TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.tuples(*[st.none() | st.integers(0, 2)] * columns), max_size=10).map(
        lambda rows: pa.table({f"c{i}": pa.array([row[i] for row in rows], pa.int64()) for i in range(columns)})
    )
)


@given(TABLES)
@settings(deadline=None)
def test_duplicates(table: pa.Table) -> None:
    rows = [tuple(row.values()) for row in table.to_pylist()]
    duplicates = deduplicate(table)
    distinct = [rows[first] for first in duplicates.first]
    assert distinct == list(dict.fromkeys(rows))
    assert [distinct[number] for number in duplicates.inverse] == rows
    assert duplicates.num_distinct == len(distinct)


def test_duplicates_in_a_table_too_wide_for_one_key() -> None:
    columns = {f"c{i}": [i, i + 1, i, i + 1, i] for i in range(200)}
    columns["last"] = [0, 0, 1, 0, 0]
    duplicates = deduplicate(pa.table(columns))
    assert duplicates.first.tolist() == [0, 1, 2]
    assert duplicates.inverse.tolist() == [0, 1, 2, 1, 0]


def test_rows_without_columns_are_all_equal() -> None:
    table = pa.table({"a": [1, 2, 3]}).select([])
    assert deduplicate(table).inverse.tolist() == [0] * table.num_rows


@given(TABLES)
@settings(deadline=None)
def test_dependencies(table: pa.Table) -> None:
    found = find_dependencies(encode(table))
    columns = [column.to_pylist() for column in table.columns]
    for left, determinant in enumerate(columns):
        for right, dependent in enumerate(columns):
            wanted = len(set(zip(determinant, dependent))) == len(set(determinant))
            assert found[left, right] == wanted


def test_dependencies_that_break_after_the_sampled_rows() -> None:
    rows = 5_000
    table = pa.table(
        {"a": [i % 10 for i in range(rows)], "b": [i % 5 for i in range(rows)], "c": [0] * (rows - 1) + [1]}
    )
    assert find_dependencies(encode(table)).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]


def test_statistics() -> None:
    cells = encode(pa.table({"a": ["x", "x", "yy", None], "b": pa.nulls(4)}))
    first, second = column_statistics(cells)
    assert (first.name, first.num_filled, first.num_distinct, first.num_nulls) == ("a", 3, 2, 1)
    assert first.mean_length == (2 * len('"a": "x",\n') + len('"a": "yy",\n')) / 3
    assert first.repeated_units == len('"a": "x",\n')
    assert first.score == first.mean_length**2 / 2
    assert (second.num_filled, second.num_nulls, second.mean_length, second.score) == (0, 4, 0.0, 0.0)
