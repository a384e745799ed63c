"""Streams: every row once, buffers that keep to their memory, and prefixes that carry over from buffer to buffer."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import OptimizerError, arrange_items, render, reorder, reorder_batches


def products(rows: int, seed: int = 0) -> pa.Table:
    """Reviews of 40 products: each product has one description."""
    generator = np.random.default_rng(seed)
    product = generator.integers(0, 40, rows)
    return pa.table(
        {
            "review": pa.array([f"text {n} of {seed}" for n in range(rows)], pa.string()),
            "stars": pa.array(generator.integers(1, 6, rows)),
            "description": pa.array([f"The product with the number {p} does it. " * 3 for p in product], pa.string()),
        }
    )


def counted(prompts: list[str]) -> tuple[int, int]:
    """Characters of lines that earlier prompts begin with too, and of all lines, in the order of the stream."""
    seen: set[tuple[str, ...]] = set()
    hits = total = 0
    for prompt in prompts:
        lines = prompt.splitlines(keepends=True)
        for end in range(1, len(lines) + 1):
            hits += len(lines[end - 1]) if tuple(lines[:end]) in seen else 0
        seen.update(tuple(lines[:end]) for end in range(1, len(lines) + 1))
        total += sum(map(len, lines))
    return hits, total


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), max_size=4),
    working_memory=st.integers(1, 30_000),
    method=st.sampled_from(["auto", "none", "sort", "fixed", "ggr", "tree"]),
)
def test_every_row_comes_once_and_hits_are_as_predicted(sizes: list[int], working_memory: int, method: str) -> None:
    batches = [products(size, seed) for seed, size in enumerate(sizes)]
    prompts: list[str] = []
    predicted = 0
    bodies: list[str] = []
    for table, ordering in reorder_batches(iter(batches), method=method, working_memory=working_memory):
        assert sorted(ordering.rows.tolist()) == list(range(table.num_rows))
        assert all(sorted(row) == [0, 1, 2] for row in ordering.fields.tolist())
        shown = render(table, ordering)
        prompts += shown
        bodies += ["".join(sorted(body.splitlines())) for body in shown]
        predicted += ordering.stats.hit_units
    whole = pa.concat_tables(batches) if batches else products(0)
    expected = ["".join(sorted(body.splitlines())) for body in render(whole, reorder(whole, method="none"))]
    assert sorted(bodies) == sorted(expected)
    assert predicted <= counted(prompts)[0], "a stream never finds less than what was predicted"


def test_buffers_go_on_where_the_last_one_ended() -> None:
    table = products(4_000)
    batches = table.to_batches(max_chunksize=500)
    whole = reorder(table).stats
    found = list(reorder_batches(batches, working_memory=300_000))
    assert len(found) > 4
    prompts = [body for part, ordering in found for body in render(part, ordering)]
    hits, total = counted(prompts)
    apart = sum(reorder(part).stats.hit_units for part, _ in found)
    predicted = sum(ordering.stats.hit_units for _, ordering in found)
    assert apart < predicted <= hits
    assert hits / total > whole.hit_units / whole.units - 0.02
    for (_, before), (part, after) in itertools.pairwise(found):
        assert after.stats.units
        assert before.fields[-1][0] == after.fields[0][0], part.num_rows
    firsts = [render(part, ordering) for part, ordering in found]
    for before_bodies, after_bodies in itertools.pairwise(firsts):
        assert before_bodies[-1].splitlines()[0] == after_bodies[0].splitlines()[0]


def test_memory_stays_within_a_small_factor_of_the_setting() -> None:
    working_memory = 2_000_000

    def stream():
        for seed in range(15):
            yield products(2_000, seed)

    largest = 0
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    for table, _ in reorder_batches(stream(), working_memory=working_memory):
        largest = max(largest, tracemalloc.get_traced_memory()[1], pa.total_allocated_bytes() - arrow)
        assert table.num_rows < 10_000
    tracemalloc.stop()
    assert largest < 6 * working_memory


def test_lists_may_be_order_free() -> None:
    lists = [[f"item {n}" for n in np.random.default_rng(row).permutation(4)] for row in range(60)]
    table = pa.table({"question": [f"q{n}" for n in range(60)], "contexts": pa.array(lists)})
    for part, ordering in reorder_batches(
        table.to_batches(max_chunksize=20), unordered=["contexts"], working_memory=20_000
    ):
        shown = arrange_items(part, ordering).column("contexts").to_pylist()
        assert len({tuple(items) for items in shown}) == 1


def test_an_empty_stream_and_empty_batches() -> None:
    assert list(reorder_batches([])) == []
    assert list(reorder_batches([products(0), products(0)])) == []
    ((table, _),) = reorder_batches([products(0), products(3), products(0)])
    assert table.num_rows == 3


def test_mistakes_are_named() -> None:
    with pytest.raises(OptimizerError, match=r"batch 2 has the schema review string.*the first x int64"):
        list(reorder_batches([pa.table({"x": [1]}), products(1)]))
    with pytest.raises(OptimizerError, match="batch 1 is no Arrow table"):
        list(reorder_batches([{"x": 1}]))  # type: ignore[list-item]
    with pytest.raises(OptimizerError, match="working_memory"):
        list(reorder_batches([products(1)], working_memory=0))
