"""Finite caches, and parts for several workers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import OptimizerError, cut, encode, finite_cache_hits, prefix_hits, reorder

ROWS = st.lists(st.tuples(*[st.none() | st.integers(0, 3)] * 3), min_size=1, max_size=10)


def make_table(rows: list[tuple[int | None, ...]]) -> pa.Table:
    return pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate("abc")})


@given(ROWS, st.sampled_from(["sort", "fixed", "tree", "none"]))
@settings(deadline=None)
def test_a_large_cache_finds_what_an_unbounded_one_does(rows: list[tuple[int | None, ...]], method: str) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method=method)
    found = finite_cache_hits(cells, ordering, 10**6)
    assert (found.units_total, found.units_hit, found.rows_too_long) == (
        ordering.stats.units,
        ordering.stats.hit_units,
        0,
    )


@given(ROWS)
@settings(deadline=None)
def test_depth_first_needs_room_for_one_row(rows: list[tuple[int | None, ...]]) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method="tree")
    longest = max(1, int(cells.id_lengths[cells.ids].sum(axis=1).max()))
    assert finite_cache_hits(cells, ordering, longest).units_hit == ordering.stats.hit_units
    less = finite_cache_hits(cells, ordering, max(longest - 1, 1))
    assert less.units_hit <= ordering.stats.hit_units


def test_a_small_cache_forgets_what_comes_back_late() -> None:
    table = pa.table({"a": ["x", "y", "x", "y"], "b": ["1", "2", "3", "4"]})
    cells = encode(table).with_lengths([[10, 10], [1, 1, 1, 1]])
    given, sorted_rows = reorder(cells, method="none"), reorder(cells, method="sort")
    assert prefix_hits(cells, given).units_hit == 20
    assert finite_cache_hits(cells, given, 11).units_hit == 0
    assert finite_cache_hits(cells, given, 23).units_hit == 20
    assert finite_cache_hits(cells, sorted_rows, 11).units_hit == 20


def test_rows_that_do_not_fit_are_counted_apart() -> None:
    table = pa.table({"a": ["x", "x", "x", "long"], "b": ["1", "2", "3", "4"]})
    cells = encode(table).with_lengths([[10, 100], [1, 1, 1, 1]])
    ordering = reorder(cells, capacity=20)
    assert (ordering.stats.units, ordering.stats.hit_units, ordering.stats.rows_too_long) == (33, 20, 1)
    assert "1 rows exceed the capacity" in ordering.explain()
    with pytest.raises(OptimizerError, match="capacity must be at least 1 token, got 0"):
        reorder(cells, capacity=0)
    with pytest.raises(OptimizerError, match="capacity together with unordered fields is not available"):
        reorder(pa.table({"a": [[1]]}), unordered=["a"], capacity=10)


@given(ROWS, st.integers(1, 5))
@settings(deadline=None)
def test_parts_hold_every_row_once(rows: list[tuple[int | None, ...]], num_parts: int) -> None:
    cells = encode(make_table(rows))
    cuts = cut(cells, reorder(cells), num_parts)
    assert len(cuts) == num_parts + 1
    assert (cuts[0], cuts[-1]) == (0, len(rows))
    assert (np.diff(cuts) >= 0).all()


def test_parts_are_equal_in_work_and_cut_where_little_is_shared() -> None:
    generator = np.random.default_rng(0)
    product = np.sort(generator.integers(0, 50, 3_000))
    table = pa.table({"product": [f"product {p} " + "described " * 20 for p in product], "review": range(3_000)})
    cells = encode(table)
    ordering = reorder(cells)
    cuts = cut(cells, ordering, 4)
    work = []
    for first, last in pairwise(cuts):
        part = cells.select_rows(ordering.rows[first:last])
        hits = reorder(part, method="tree").stats
        work.append(hits.units - hits.hit_units)
    assert max(work) < 1.1 * min(work)
    assert sum(work) == ordering.stats.units - ordering.stats.hit_units  # nothing is computed twice
    with pytest.raises(OptimizerError, match="at least 1, got 0"):
        cut(cells, ordering, 0)
