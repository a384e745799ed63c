"""Tables that are planned in parts, within a working memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import METHODS, OptimizerError, encode, find_dependencies, prefix_hits, reorder
from llmsql.optimizer.fixed import given_fields
from llmsql.optimizer.table_parts import columns_by_place, cut_table
from llmsql.optimizer.tree import tree_fields
from llmsql.optimizer.working_memory import BYTES_PER_CELL, PART_CELLS, free_memory, part_cells

ROWS = st.lists(st.tuples(*[st.none() | st.integers(0, 5)] * 3), min_size=9, max_size=60)


def catalogue(rows: int, seed: int = 0) -> pa.Table:
    """Reviews of products of brands by users of cities: groups within groups, in no order."""
    generator = np.random.default_rng(seed)
    product = generator.integers(0, rows // 12, rows)
    user = generator.integers(0, rows // 5, rows)
    return pa.table(
        {
            "review": [f"review {value}" for value in generator.integers(0, 10 * rows, rows)],
            "user": [f"user {value}" for value in user],
            "city": [f"a city called {value}" for value in user % 37],
            "product": [f"product {value} " + "described at length " * (value % 4) for value in product],
            "brand": [f"brand {value} with a slogan" for value in product % 41],
            "stars": generator.integers(1, 6, rows),
        }
    )


@given(ROWS, st.integers(1, 2_000), st.sampled_from([method for method in METHODS if method != "ophr"]))
@settings(deadline=None)
def test_any_working_memory_gives_a_permutation(
    rows: list[tuple[int | None, ...]], working_memory: int, method: str
) -> None:
    table = pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate("abc")})
    ordering = reorder(table, method=method, working_memory=working_memory)
    assert sorted(ordering.rows.tolist()) == list(range(len(rows)))
    assert all(sorted(fields) == [0, 1, 2] for fields in ordering.fields.tolist())
    assert prefix_hits(encode(table), ordering).units_hit == ordering.stats.hit_units


@given(ROWS, st.integers(1, 30))
@settings(deadline=None)
def test_parts_hold_every_row_once(rows: list[tuple[int | None, ...]], part_rows: int) -> None:
    table = pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate("abc")})
    cells = encode(table)
    parts = cut_table(cells, part_rows, find_dependencies(cells), given_fields)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    assert all(0 < len(part) <= part_rows for part in parts)


def test_rows_that_share_most_are_in_one_part() -> None:
    generator = np.random.default_rng(0)
    pair = generator.permutation(np.repeat(np.arange(1_000), 2))  # too rare for a sample to see
    table = pa.table({"kind": pair % 3, "text": [f"a text that two rows have, number {value}" for value in pair]})
    cells = encode(table)
    part_of = np.empty(2_000, dtype=np.int64)
    parts = cut_table(cells, 300, find_dependencies(cells), given_fields)
    for number, part in enumerate(parts):
        part_of[part] = number
    assert len(parts) < 9
    for value in range(1_000):
        assert len(set(part_of[pair == value].tolist())) == 1


def test_columns_stand_where_they_save() -> None:
    table = pa.table({"a": [1, 1, 2, 2], "b": [3, 3, 3, 3], "c": [1, 2, 3, 4]})
    assert columns_by_place(encode(table), np.tile([1, 0, 2], (4, 1))).tolist() == [1, 0, 2]
    assert columns_by_place(encode(table), np.tile([2, 1, 0], (4, 1))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_parts", [3, 12])
def test_parts_find_about_what_the_whole_does(num_parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = encode(catalogue(6_000))
    whole = reorder(cells, method="tree").stats.hit_rate
    fixed = reorder(cells, method="fixed").stats.hit_rate
    parts = reorder(cells, method="tree", working_memory=cells.codes.size * BYTES_PER_CELL // num_parts).stats
    assert len(np.unique(cells.codes, axis=0)) == parts.num_distinct
    assert fixed < whole - 0.02
    assert parts.hit_rate > whole - 0.01
    again = reorder(cells, method="tree", working_memory=cells.codes.size * BYTES_PER_CELL // num_parts)
    assert again.stats.hit_units == parts.hit_units


def test_planning_stays_within_its_memory() -> None:
    cells = encode(catalogue(40_000))
    for column in range(cells.num_columns):
        assert len(cells.sorted_texts(column).begins.values)  # belongs to the cells, once for all methods
    known = find_dependencies(cells)
    peaks = []
    for working_memory in (2**20, 2**22, 2**24):
        tracemalloc.start()
        fields = tree_fields(cells, known, working_memory=working_memory)
        peaks.append(tracemalloc.get_traced_memory()[1] - fields.nbytes)
        tracemalloc.stop()
        assert peaks[-1] < 1.5 * working_memory + 60 * cells.num_rows
    assert peaks == sorted(peaks)


def test_the_whole_takes_a_few_times_the_encoded_table() -> None:
    table = catalogue(150_000)
    cells = encode(table)
    encoded = cells.codes.nbytes + sum(column.nbytes for column in (*cells.texts, *cells.lengths))
    del cells
    tracemalloc.start()
    ordering = reorder(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ordering.stats.chosen == "tree"
    assert peak < 4 * encoded


def test_what_free_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_cells(10**12) == PART_CELLS
    assert part_cells(50 * BYTES_PER_CELL) == 50
    assert part_cells(1) == 1
    monkeypatch.setattr("llmsql.optimizer.working_memory.MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr("llmsql.optimizer.working_memory.GROUP_FOLDER", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:     4000 kB\n")
    assert free_memory() == 4_096_000
    assert part_cells(None) == 4_096_000 // 4 // BYTES_PER_CELL
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_memory() == 4_096_000
    (tmp_path / "memory.max").write_text("3000\n")
    assert free_memory() == 2_000
    (tmp_path / "memory.max").write_text("10\n")
    assert part_cells(None) == 1


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(OptimizerError, match="working_memory must be at least 1 byte, got 0"):
        reorder(pa.table({"a": [1]}), method="sort", working_memory=0)
