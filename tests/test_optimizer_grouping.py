"""Grouping, sorting and growing in bulk against slow and plain definitions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import encode
from llmsql.optimizer.cell_order import shared_units, text_order
from llmsql.optimizer.cells import Cells
from llmsql.optimizer.counting import count_shared
from llmsql.optimizer.grouping import first_equal, group_keys, runs, stable_order
from llmsql.optimizer.growth import grow
from llmsql.optimizer.sorted_texts import BLOCK, RangeMinimum

KEYS = st.lists(st.integers(0, 12) | st.integers(2**40, 2**40 + 3), max_size=60)
VALUES = st.sampled_from([None, "", "a", "ab", "b", "bbb"])
ROWS = st.integers(1, 4).flatmap(lambda columns: st.lists(st.tuples(*[VALUES] * columns), max_size=20))


@given(KEYS)
@settings(deadline=None)
def test_equal_keys_are_found_wherever_they_stand(keys: list[int]) -> None:
    array = np.array(keys, dtype=np.int64)
    assert first_equal(array).tolist() == [keys.index(key) for key in keys]
    distinct = list(dict.fromkeys(keys))
    assert group_keys(array).tolist() == [distinct.index(key) for key in keys]
    small = array % 13  # looked up in a table instead
    assert first_equal(small, 13).tolist() == [small.tolist().index(key) for key in small.tolist()]


def test_many_keys_that_collide() -> None:
    # keys far apart whose products with the multipliers still meet in the table
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 2**61, 5_000)[generator.integers(0, 5_000, 20_000)]
    _, wanted = np.unique(keys, return_index=True)
    assert np.array_equal(np.unique(first_equal(keys)), np.sort(wanted))


@given(KEYS, st.integers(1, 8))
@settings(deadline=None)
def test_orders_are_stable_and_runs_whole(keys: list[int], size: int) -> None:
    array = np.array(keys, dtype=np.int64)
    order = stable_order(array, 2**41)
    assert order.tolist() == sorted(range(len(keys)), key=lambda place: keys[place])
    ordered = array[order].tolist()
    pieces = runs(array[order], size)
    assert [place for first, last in pieces for place in range(first, last)] == list(range(len(keys)))
    for first, last in pieces:
        assert last - first <= size or len(set(ordered[first:last])) == 1
        assert first == 0 or ordered[first - 1] != ordered[first]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5 * BLOCK), st.data())
@settings(deadline=None)
def test_range_minimum(values: list[int], data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, len(values) - 1), st.integers(1, len(values))), max_size=20))
    starts = np.array([min(start, end - 1) for start, end in pairs], dtype=np.int64)
    ends = np.array([end for _, end in pairs], dtype=np.int64)
    found = RangeMinimum(np.array(values, dtype=np.int32)).between(starts, ends)
    assert found.tolist() == [min(values[start:end]) for start, end in zip(starts.tolist(), ends.tolist())]


def make_cells(rows: list[tuple[str | None, ...]]) -> Cells:
    columns = len(rows[0]) if rows else 1
    return encode(pa.table({f"c{i}": pa.array([row[i] for row in rows], pa.string()) for i in range(columns)}))


@given(ROWS, st.integers(1, 6), st.integers(0, 1_000))
@settings(deadline=None)
def test_counting_in_batches_is_counting_at_once(rows: list[tuple[str | None, ...]], size: int, seed: int) -> None:
    cells = make_cells(sorted(set(rows), key=repr))
    fields = np.argsort(np.random.default_rng(seed).random(cells.codes.shape), axis=1)
    order = text_order(cells)
    whole = shared_units(order.prompts(cells, fields), order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmsql.optimizer.counting.BATCH_ROWS", size)
        shared, shown = count_shared(cells, fields, order)
    assert shared == whole
    assert sorted(shown.tolist()) == list(range(cells.num_rows))
    prompts = [[column for column in fields[row].tolist() if cells.codes[row, column] >= 0] for row in shown.tolist()]
    seen: set[tuple[tuple[int, int], ...]] = set()
    last: list[tuple[int, int]] = []
    for row, columns in zip(shown.tolist(), prompts):
        prompt = [(column, int(cells.codes[row, column])) for column in columns]
        for depth in range(1, len(prompt) + 1):  # a prefix seen before is one that the row before has too
            assert (tuple(prompt[:depth]) in seen) == (prompt[:depth] == last[:depth])
        seen |= {tuple(prompt[:depth]) for depth in range(1, len(prompt) + 1)}
        last = prompt


@pytest.mark.parametrize("batch_cells", [1, 30, 10**6], ids=["node by node", "some nodes", "all at once"])
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=25))
@settings(deadline=None)
def test_growing_ends_when_items_of_a_node_share_only_what_all_do(batch_cells: int, matrix: list[list[int]]) -> None:
    ids = (np.array(matrix) + 1 + 3 * np.arange(3)).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmsql.optimizer.growth.BATCH_CELLS", batch_cells)
        growth = grow(ids, np.ones(10), np.zeros(len(ids), dtype=np.int32), 1)
    parents = [-1, *growth.parents.tolist()]
    members: list[list[int]] = [[] for _ in parents]
    for item, node in enumerate(growth.nodes.tolist()):
        while node >= 0:
            members[node].append(item)
            node = parents[node]
    for node in range(len(parents)):
        common = (ids[members[node]] == ids[members[node][0]]).all(axis=0)
        direct = ids[[item for item in members[node] if growth.nodes[item] == node]][:, ~common]
        assert all(len(set(column)) == len(column) for column in direct.T.tolist())
        if node:
            assert growth.ids[node - 1] in ids[members[node][0]][common]
            assert len(members[node]) > 1
