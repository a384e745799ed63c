"""Tables ordered one after another: what is remembered, what is found again, and that nothing is lost by it."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import OptimizerError, Ordering, PromptMemory, encode, reorder
from llmsql.optimizer import earlier_prompts as earlier_prompts_module
from llmsql.optimizer.earlier_prompts import EarlierPrompts, Prompts, cell_hashes
from llmsql.optimizer.prompt_memory import FOLLOWING, ONE_ORDER

NAMES = ("a", "b", "c", "d")
VALUES = st.one_of(st.none(), st.sampled_from(["x", "y", "a longer text", "a longer one"]))
TABLES = st.lists(st.lists(st.tuples(*[VALUES] * len(NAMES)), max_size=12), min_size=1, max_size=4)


def table_of(rows: list[tuple[str | None, ...]]) -> pa.Table:
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(NAMES)})


def lines(table: pa.Table, ordering: Ordering) -> list[tuple[str, ...]]:
    """The cells of each prompt in the order in which they are shown."""
    shown = []
    for row, fields in zip(ordering.rows.tolist(), ordering.fields.tolist()):
        values = [(NAMES[field], table.column(field)[row].as_py()) for field in fields]
        shown.append(tuple(f'"{name}": "{value}",\n' for name, value in values if value is not None))
    return shown


def found_again(prompts: list[tuple[str, ...]], seen: set[tuple[str, ...]]) -> int:
    """Characters of whole cells that an earlier prompt has behind the same cells; adds to the prefixes seen."""
    hits = 0
    for cells in prompts:
        prefixes = [cells[: end + 1] for end in range(len(cells))]
        hits += sum(len(prefix[-1]) for prefix in prefixes if prefix in seen)
        seen.update(prefixes)
    return hits


@settings(max_examples=60, deadline=None)
@given(batches=TABLES, method=st.sampled_from(["auto", "tree", "fixed", "sort"]), more=st.booleans())
def test_every_row_is_shown_and_hits_are_those_of_a_trie(
    batches: list[list[tuple[str | None, ...]]], method: str, more: bool
) -> None:
    memory, seen = PromptMemory(), set[tuple[str, ...]]()
    for rows in batches:
        table = table_of(rows)
        own = reorder(table, method=method)
        found = memory.reorder(encode(table), lambda cells, method=method: reorder(cells, method=method), more=more)
        assert sorted(found.rows.tolist()) == list(range(len(rows)))
        assert all(sorted(fields) == [0, 1, 2, 3] for fields in found.fields.tolist())
        by_itself = found_again(lines(table, own), set(seen))
        assert found_again(lines(table, found), seen) == found.stats.hit_units
        if not more:
            assert found.stats.hit_units + found.stats.partial_units >= by_itself + own.stats.partial_units


@settings(max_examples=60, deadline=None)
@given(shown=TABLES, rows=st.lists(st.tuples(*[VALUES] * len(NAMES)), min_size=1, max_size=6))
def test_the_longest_remembered_prefix_is_followed(
    shown: list[list[tuple[str | None, ...]]], rows: list[tuple[str | None, ...]]
) -> None:
    earlier, seen = EarlierPrompts(), set[tuple[str, ...]]()
    for batch in shown:
        table = table_of(batch)
        ordering = reorder(table)
        cells = encode(table)
        earlier.learn(Prompts.of(cells, ordering.rows, ordering.fields, cell_hashes(cells)))
        found_again(lines(table, ordering), seen)
    table = table_of(rows)
    cells = encode(table)
    paths = earlier.follow(cells.ids, cells.id_lengths, cell_hashes(cells))
    for row in range(len(rows)):
        texts = [f'"{name}": "{value}",\n' for name, value in zip(NAMES, rows[row]) if value is not None]
        orders = itertools.permutations(texts)
        longest = max(found_again([order], set(seen)) for order in orders)
        columns = [column for column in paths.columns[row].tolist() if column >= 0]
        path = tuple(f'"{NAMES[column]}": "{rows[row][column]}",\n' for column in columns)
        assert paths.units[row] == longest == sum(map(len, path))
        assert not path or path in seen


def groups(rows: int, seed: int = 0) -> pa.Table:
    """Reviews of products, whose long description is what they share; in no order."""
    generator = np.random.default_rng(seed)
    product = generator.integers(0, rows // 4, rows)
    return pa.table(
        {
            "text": [f"review {n} of {seed}" for n in range(rows)],
            "stars": generator.integers(1, 6, rows),
            "verified": generator.random(rows) < 0.8,
            "description": [f"The product with the number {p} does it well. " * 5 for p in product],
        }
    )


def computed(orderings: list[Ordering]) -> int:
    return sum(ordering.stats.computed_units for ordering in orderings)


def test_later_tables_find_what_earlier_ones_have_shown() -> None:
    tables = [groups(400, seed) for seed in range(4)]
    whole = reorder(pa.concat_tables(tables)).stats.computed_units
    apart = computed([reorder(table) for table in tables])
    memory = PromptMemory()
    after = computed([memory.reorder(table) for table in tables])
    hopeful = PromptMemory()
    orderings = [hopeful.reorder(table, more=True) for table in tables]
    assert orderings[0].stats.chosen == ONE_ORDER
    assert orderings[1].stats.chosen in (FOLLOWING, ONE_ORDER)
    assert computed(orderings) < after < apart
    assert computed(orderings) < 1.02 * whole


def test_a_first_table_of_sorted_rows_keeps_its_own_order() -> None:
    table = groups(400).sort_by("description")
    assert PromptMemory().reorder(table, more=True).stats.chosen == FOLLOWING
    assert PromptMemory().reorder(table, more=True).stats.computed_units <= reorder(table).stats.computed_units
    assert PromptMemory().reorder(table.slice(0, 1), more=True).rows.tolist() == [0]


def test_orders_are_the_same_each_time() -> None:
    tables = [groups(200, seed) for seed in range(3)]
    first, second = PromptMemory(), PromptMemory()
    for table in tables:
        one, other = first.reorder(table, more=True), second.reorder(table, more=True)
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.fields, other.fields)


def test_rows_come_from_the_end_at_which_the_last_table_stopped() -> None:
    memory = PromptMemory()
    table = pa.table({"text": [f"{n:03}" for n in range(50)]})
    up, down = memory.reorder(table).rows.tolist(), memory.reorder(table).rows.tolist()
    assert down == up[::-1] == list(range(50))[::-1]
    assert memory.reorder(table, alone=False).rows.tolist() == down, "together they go in one direction"
    assert memory.reorder(table).rows.tolist() == up


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = EarlierPrompts()
    table = groups(300)
    ordering, cells = reorder(table), encode(table)
    prompts = Prompts.of(cells, ordering.rows, ordering.fields, cell_hashes(cells))
    earlier.learn(prompts)
    assert len(earlier) == len(np.unique(prompts.chains))
    assert earlier.units == cells.total_length - ordering.stats.hit_units
    earlier.keep(5_000)
    assert 4_000 < earlier.units <= 5_000
    assert earlier.known(prompts.chains[-1]).all(), "what was shown last is kept"
    assert not earlier.known(prompts.chains[0, :1]).any() or prompts.chains[0, 0] == prompts.chains[-1, 0]
    known = earlier.known(prompts.chains)
    assert (known[:, 1:] <= known[:, :-1]).all(), "no prefix is kept without its begin"
    monkeypatch.setattr(earlier_prompts_module, "MAX_NODES", 20)
    earlier.learn(prompts)
    assert len(earlier) == 20


def test_a_small_cache_is_not_taken_for_a_large_one() -> None:
    tables = [groups(400, seed) for seed in range(2)]
    large, small = PromptMemory(), PromptMemory(1_000)
    for memory in (large, small):
        memory.reorder(tables[0])
    own = reorder(tables[1]).stats
    assert own.hit_units <= small.reorder(tables[1]).stats.hit_units < own.hit_units + 1_000
    assert large.reorder(tables[1]).stats.hit_units > own.hit_units + 1_000
    with pytest.raises(OptimizerError, match="capacity must be at least 1 unit, got 0"):
        PromptMemory(0)


def test_threads_take_turns() -> None:
    memory = PromptMemory()
    tables = [groups(200, seed) for seed in range(4)]
    found: dict[int, Ordering] = {}

    def run(number: int) -> None:
        found[number] = memory.reorder(tables[number], more=True, alone=False)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sorted(found[number].rows.tolist()) == list(range(200)) for number in range(4))
    apart = computed([reorder(table) for table in tables])
    assert computed(list(found.values())) < 0.9 * apart
