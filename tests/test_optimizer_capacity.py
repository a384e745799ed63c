"""Finite caches, and parts for several workers."""

from __future__ import annotations

from itertools import pairwise, takewhile

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
    computed_units,
    cut,
    encode,
    finite_cache_hits,
    prefix_hits,
    render,
    reorder,
)
from llmsql.optimizer.parts import LEEWAY

ROWS = st.lists(st.tuples(*[st.none() | st.integers(0, 3)] * 3), min_size=1, max_size=10)


def make_table(rows: list[tuple[int | None, ...]]) -> pa.Table:
    return pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate("abc")})


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
    assert "20 tokens; 1 rows exceed it and are not counted" in ordering.explain()
    with pytest.raises(OptimizerError, match="capacity must be at least 1 token, got 0"):
        reorder(cells, capacity=0)


def prompts_of(cells: Cells, ordering: Ordering) -> list[list[str]]:
    shown = zip(ordering.rows.tolist(), ordering.fields.tolist())
    codes = [[(column, int(cells.codes[row, column])) for column in fields] for row, fields in shown]
    return [[cells.texts[column][code].as_py() for column, code in prompt if code >= 0] for prompt in codes]


def least_recently_used(prompts: list[list[str]], capacity: int) -> int:
    """Characters found in a cache of cells, each known by all that stands before it, one row after the other."""
    last_use: dict[tuple[str, ...], int] = {}
    clock = hits = 0
    for prompt in prompts:
        if sum(map(len, prompt)) > capacity:
            continue
        path = [tuple(prompt[: depth + 1]) for depth in range(len(prompt))]
        hits += sum(len(prefix[-1]) for prefix in path if prefix in last_use)
        for prefix in reversed(path):
            clock += 1
            last_use[prefix] = clock
        while sum(len(prefix[-1]) for prefix in last_use) > capacity:
            del last_use[min(last_use, key=last_use.__getitem__)]
    return hits


def kept_while_needed(prompts: list[list[str]]) -> tuple[int, int]:
    """Characters found, and the most held at once, when a cell is dropped as soon as no later row needs it."""
    paths = [[tuple(prompt[: depth + 1]) for depth in range(len(prompt))] for prompt in prompts]
    last_row = {prefix: row for row, path in enumerate(paths) for prefix in path}
    live: set[tuple[str, ...]] = set()
    hits = most = 0
    for row, path in enumerate(paths):
        hits += sum(len(prefix[-1]) for prefix in path if prefix in live)
        live |= set(path)
        most = max(most, sum(len(prefix[-1]) for prefix in live))
        live = {prefix for prefix in live if last_row[prefix] > row}
    return hits, most


@given(ROWS, st.sampled_from(METHODS), st.integers(10, 120))
@settings(deadline=None, max_examples=150)
def test_a_finite_cache_finds_what_plain_python_finds(
    rows: list[tuple[int | None, ...]], method: str, capacity: int
) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method=method)
    found = finite_cache_hits(cells, ordering, capacity)
    prompts = prompts_of(cells, ordering)
    assert found.units_hit == least_recently_used(prompts, capacity)
    fitting = [prompt for prompt in prompts if sum(map(len, prompt)) <= capacity]
    assert (found.units_total, found.rows_too_long) == (
        sum(len(c) for p in fitting for c in p),
        len(rows) - len(fitting),
    )


@given(ROWS, st.sampled_from(["sort", "fixed", "ggr", "tree", "auto"]))
@settings(deadline=None)
def test_cells_kept_while_they_are_needed_are_those_of_one_row(rows: list[tuple[int | None, ...]], method: str) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method=method)
    prompts = prompts_of(cells, ordering)
    hits, most = kept_while_needed(prompts)
    assert hits == ordering.stats.hit_units
    assert most <= max(sum(map(len, prompt)) for prompt in prompts)


@given(ROWS, st.sampled_from(METHODS), st.integers(1, 45))
@settings(deadline=None, max_examples=60)
def test_figures_under_a_capacity_are_those_of_the_finite_cache(
    rows: list[tuple[int | None, ...]], method: str, capacity: int
) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method=method, capacity=capacity)
    assert sorted(ordering.rows.tolist()) == list(range(len(rows)))
    assert all(sorted(fields) == [0, 1, 2] for fields in ordering.fields.tolist())
    found = finite_cache_hits(cells, ordering, capacity)
    stats = ordering.stats
    assert (found.units_total, found.units_hit, found.rows_too_long) == (
        stats.units,
        stats.hit_units,
        stats.rows_too_long,
    )
    assert stats.candidates["none"] == least_recently_used(prompts_of(cells, reorder(cells, method="none")), capacity)
    if method == "auto":
        assert stats.hit_rate >= max(
            reorder(cells, method=one, capacity=capacity).stats.hit_rate for one in METHODS if one != "none"
        )


def test_rows_that_do_not_fit_have_no_say_in_the_choice() -> None:
    # the long rows share "a", the others "b"; together "a" is worth more, but those that share it are not run
    table = pa.table(
        {
            "a": ["shared by the long ones"] * 6 + [f"{i:023}" for i in range(6)],
            "b": [f"{i:020}" for i in range(6)] + ["by the short ones !!"] * 6,
            "c": ["x" * 100 + str(i) for i in range(6)] + [str(i) for i in range(6)],
        }
    )
    unbounded = reorder(table, method="fixed")
    assert (unbounded.fields[:, 0] == 0).all()
    bounded = reorder(table, method="fixed", capacity=100)
    assert sorted(bounded.rows[:6].tolist()) == list(range(6, 12))
    assert (bounded.fields[:6, 0] == 1).all()
    assert bounded.stats.rows_too_long == 6
    assert (bounded.stats.num_rows, bounded.stats.num_distinct) == (12, 12)


def test_capacity_and_lists_whose_items_may_move() -> None:
    passages = [f"passage {i} " + "with text " * 5 for i in range(4)]
    table = pa.table(
        {
            "question": ["long question " * 50, *[f"question {i}" for i in range(6)]],
            "passages": [passages, *[[passages[(i + j) % 3] for j in range(i % 3 + 1)] for i in range(6)]],
        }
    )
    bounded = reorder(table, unordered=["passages"], capacity=300)
    assert bounded.rows[-1] == 0
    assert bounded.stats.rows_too_long == 1
    short = table.slice(1)
    assert render(table, bounded)[:-1] == render(short, reorder(short, unordered=["passages"]))
    assert bounded.items["passages"].shape == (7, 4)
    assert reorder(table, unordered=["passages"], capacity=10).stats.rows_too_long == 7


@given(ROWS, st.integers(1, 5), st.sampled_from(["none", "tree"]), st.sampled_from([0, 7]))
@settings(deadline=None)
def test_parts_hold_every_row_once_and_are_equal_in_work(
    rows: list[tuple[int | None, ...]], num_parts: int, method: str, row_units: int
) -> None:
    cells = encode(make_table(rows))
    ordering = reorder(cells, method=method)
    cuts = cut(cells, ordering, num_parts, row_units=row_units).tolist()
    assert len(cuts) == num_parts + 1
    assert (cuts[0], cuts[-1]) == (0, len(rows))
    assert cuts == sorted(cuts)
    # characters that each row has beyond the row before it
    prompts = prompts_of(cells, ordering)
    shared = [0, *[sum(len(cell) for cell in common(*pair)) for pair in pairwise(prompts)]]
    work = [sum(map(len, prompt)) - same + row_units for prompt, same in zip(prompts, shared)]
    assert computed_units(cells, ordering) == sum(work) - len(rows) * row_units
    part = sum(work) / num_parts
    slack = max(LEEWAY * part, max(work) / 2)
    for number, place in enumerate(cuts):
        assert abs(sum(work[:place]) - number * part) <= slack + 1e-9
    # so a worker computes its share, the slack at both ends, and what its first row shares with one elsewhere
    for first, last in pairwise(cuts):
        prefixes = {tuple(prompt[: depth + 1]) for prompt in prompts[first:last] for depth in range(len(prompt))}
        computed = sum(len(prefix[-1]) for prefix in prefixes) + (last - first) * row_units
        assert first == last or computed <= part + 2 * slack + shared[first] + 1e-9


def common(left: list[str], right: list[str]) -> list[str]:
    return [cell for cell, _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right))]


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
