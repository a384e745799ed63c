"""List fields whose items may be shown in any order."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsql.optimizer import METHODS, OptimizerError, arrange_items, encode, render, reorder
from llmsql.optimizer.item_trees import align_items, grow_items, saved_by_row, shared_order
from llmsql.optimizer.unordered import read_items

ITEMS = st.none() | st.sampled_from(["a", "b", "c", "a longer item", "null"])
ROWS = st.tuples(
    st.none() | st.lists(ITEMS, max_size=4), st.none() | st.sampled_from("xy"), st.lists(ITEMS, max_size=2)
)
TYPE = pa.list_(pa.string())


def make_table(rows: list[tuple]) -> pa.Table:
    one, plain, two = zip(*rows) if rows else ((), (), ())
    return pa.table({"one": pa.array(one, TYPE), "plain": pa.array(plain, pa.string()), "two": pa.array(two, TYPE)})


@given(st.lists(ROWS, max_size=8), st.sampled_from(METHODS))
@settings(deadline=None)
def test_items_change_places_and_nothing_else(rows: list[tuple], method: str) -> None:
    table = make_table(rows)
    ordering = reorder(table, method=method, unordered=["one", "two"])
    assert sorted(ordering.rows.tolist()) == list(range(len(rows)))
    assert all(sorted(fields) == [0, 1, 2] for fields in ordering.fields.tolist())
    arranged = arrange_items(table, ordering)
    bodies = render(table, ordering)
    for row, body in zip(ordering.rows.tolist(), bodies):
        shown = json.loads("{" + body[:-2] + "}")
        for name, value in table.slice(row, 1).to_pylist()[0].items():
            if isinstance(value, list):
                assert arranged[name][row].as_py() == shown[name]
                assert sorted(map(str, shown[name])) == sorted(map(str, value))
            else:
                assert shown.get(name) == value


@given(st.lists(ROWS, max_size=8), st.sampled_from(["auto", "tree", "fixed", "ophr"]))
@settings(deadline=None, max_examples=60)
@example([(None, "y", []), ([], "y", []), ([None, None], None, []), ([None] * 3, None, [None])], "auto")
@example([(["a"], "x", []), (["a", "b"], "x", []), (["a longer item"], None, ["a"]), (["a"] * 4, "y", None)], "auto")
def test_prediction_is_what_the_prompts_share(rows: list[tuple], method: str) -> None:
    table = make_table(rows)
    ordering = reorder(table, method=method, unordered=["one", "two"])
    bodies, stats = render(table, ordering), ordering.stats
    prefixes = {body[:length] for body in bodies for length in range(1, len(body) + 1)}
    assert stats.units == sum(map(len, bodies))
    assert stats.computed_units == len(prefixes)
    as_given = reorder(table, method="none").stats
    assert stats.candidates["none"] == as_given.units - as_given.computed_units
    assert stats.units - stats.computed_units == stats.candidates[stats.chosen]
    if method == "auto":
        assert stats.candidates[stats.chosen] == max(stats.candidates.values())


def test_rows_begin_with_the_items_they_share() -> None:
    generator = np.random.default_rng(0)
    passages = [f"passage {i} " + "with text " * 20 for i in range(30)]
    lists = [[passages[i] for i in generator.choice(30, 4, replace=False)] for _ in range(200)]
    table = pa.table({"question": [f"question {i}" for i in range(200)], "passages": lists})
    ordering = reorder(table, unordered=["passages"])
    fixed_items = reorder(table).stats.hit_units / reorder(table).stats.units
    assert ordering.stats.chosen == "list first"
    assert (ordering.fields[:, 0] == 1).all()
    assert fixed_items < 0.1 < 0.4 < ordering.stats.hit_rate
    assert "list first" in ordering.explain()


def test_lists_stand_behind_what_is_shared_anyway() -> None:
    generator = np.random.default_rng(0)
    passages = [f"passage {i} " + "with text " * 5 for i in range(12)]
    table = pa.table(
        {
            "passages": [[passages[j] for j in generator.choice(12, 5, replace=False)] for _ in range(40)],
            "document": [f"document {i % 2} " + "with much more text " * 50 for i in range(40)],
            "id": list(range(40)),
        }
    )
    ordering = reorder(table, unordered=["passages"])
    assert ordering.stats.chosen == "list after shared"
    assert ordering.fields.tolist() == [[1, 0, 2]] * 40


def test_each_node_goes_on_with_the_list_or_with_other_fields() -> None:
    # half of the rows have a long text of their tenant in common, the others only passages
    generator = np.random.default_rng(0)
    passages = [f"passage {i} " + "with text " * 10 for i in range(24)]
    tenants = [f"tenant {i % 3} " + "with rules " * 60 if i % 2 else f"alone {i}" for i in range(120)]
    table = pa.table(
        {
            "id": list(range(120)),
            "passages": [[passages[j] for j in generator.choice(24, 4, replace=False)] for _ in range(120)],
            "tenant": tenants,
            "day": [f"day {i // 2 % 14}" for i in range(120)],
        }
    )
    ordering = reorder(table, unordered=["passages"])
    assert ordering.stats.chosen.startswith("list by node")
    first = {
        tenants[row].split()[0]: table.column_names[fields[0]] for row, fields in zip(ordering.rows, ordering.fields)
    }
    assert first == {"tenant": "tenant", "alone": "passages"}
    others = [ordering.stats.candidates[name] for name in ("list first", "list after shared", "tree", "fixed")]
    assert ordering.stats.candidates[ordering.stats.chosen] > 1.05 * max(others)


def test_several_lists_are_placed_one_by_one() -> None:
    generator = np.random.default_rng(0)
    texts = [f"text {i} " + "of some length " * 8 for i in range(8)]
    columns = {
        name: [[texts[j] for j in generator.choice(8, 2, replace=False)] for _ in range(150)] for name in ("one", "two")
    }
    table = pa.table({"id": range(150), **columns})
    both = reorder(table, unordered=["one", "two"]).stats.hit_rate
    assert both > reorder(table, unordered=["one"]).stats.hit_rate
    assert both > reorder(table, unordered=["two"]).stats.hit_rate


def test_items_may_be_lists_and_structs() -> None:
    kind = pa.list_(pa.struct([("page", pa.int64()), ("words", pa.list_(pa.string()))]))
    items = [{"page": 1, "words": ["a", None]}, {"page": 2, "words": []}, {"page": None, "words": None}]
    table = pa.table({"hits": pa.array([[items[0], items[1]], [items[1], items[0]], [items[2]], None, []], kind)})
    ordering = reorder(table, unordered=["hits"])
    shown = [json.loads("{" + body[:-2] + "}") for body in render(table, ordering)]
    assert sorted(len(row.get("hits", "--------")) for row in shown) == [0, 1, 2, 2, 8]
    first, second = (row["hits"] for row in shown if len(row.get("hits", [])) == 2)
    assert first == second
    assert {"page": 1, "words": ["a", None]} in first


def test_lists_of_the_same_items_are_one_cell() -> None:
    table = pa.table({"tags": [["a", "b"], ["b", "a"], ["b", "a", "b"]]})
    ordering = reorder(table, unordered=["tags"])
    assert len(encode(arrange_items(table, ordering)).texts[0]) == 2


@pytest.mark.parametrize("kind", [pa.large_list(pa.int8()), pa.list_(pa.int8(), 2), pa.list_view(pa.int8())], ids=str)
def test_kinds_of_lists(kind: pa.DataType) -> None:
    table = pa.table({"a": pa.chunked_array([pa.array([[1, 2]], kind), pa.array([[2, 1], [3, 2]], kind)])})
    ordering = reorder(table, unordered=["a"])
    arranged = arrange_items(table, ordering)["a"].to_pylist()
    assert [sorted(items) for items in arranged] == [[1, 2], [1, 2], [2, 3]]
    assert {tuple(items[:1]) for items in arranged} == {(2,)}


def test_what_is_wrong_is_said() -> None:
    table = pa.table({"a": [[1]], "b": [2]})
    with pytest.raises(OptimizerError, match="'c' is not one of the columns a, b"):
        reorder(table, unordered=["c"])
    with pytest.raises(OptimizerError, match="'b' has type int64, not a list"):
        reorder(table, unordered=["b"])
    with pytest.raises(OptimizerError, match="unordered fields need the table itself"):
        reorder(encode(table), unordered=["a"])
    ordering = reorder(table, unordered=["a"])
    with pytest.raises(OptimizerError, match="render the table itself"):
        render(encode(table), ordering)
    with pytest.raises(OptimizerError, match=r"for 1 rows with a list 'a', the table has 1 rows and columns b"):
        arrange_items(table.select(["b"]), ordering)


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=12), st.integers(1, 3))
@settings(deadline=None)
def test_aligned_items_stand_in_one_column_each(rows: list[list[int]], num_homes: int) -> None:
    items = read_items(pa.table({"a": pa.array(rows, pa.list_(pa.int64()))}), ["a"])[0]
    aligned = align_items(items)
    counts = Counter(item for row in rows for item in set(row))
    ids = {int(text): number for number, text in enumerate(items.texts.to_pylist(), 1)}
    for row, found in zip(rows, aligned.ids.tolist()):
        wanted = [ids[item] for item in set(row) if counts[item] > 1]
        assert sorted(number for number in found if number) == sorted(wanted)
        assert all(found[aligned.columns[number]] == number for number in wanted)
    homes = np.arange(len(rows)) % num_homes
    order = shared_order(items, aligned, homes)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(order.shape[1]), (len(rows), 1)))
    shown = np.take_along_axis(items.ids, order, axis=1).tolist()
    assert all(0 not in row[: len(given)] for row, given in zip(shown, rows))
    for one, row in enumerate(rows):  # lists of the same items read the same within a home
        for other in range(one):
            if sorted(row) == sorted(rows[other]) and homes[one] == homes[other]:
                assert shown[one] == shown[other]


def test_rows_move_to_the_items_they_share_most() -> None:
    generator = np.random.default_rng(0)
    passages = [f"passage {i:03} " + "with text " * 20 for i in range(60)]
    lists = [[passages[i] for i in sorted(generator.choice(60, 4, replace=False))] for _ in range(300)]
    items = read_items(pa.table({"a": lists}), ["a"])[0]
    homes = np.zeros(300, dtype=np.int64)
    grown = saved_by_row(grow_items(items, homes), items).sum()
    shown = np.take_along_axis(items.ids, shared_order(items, align_items(items), homes), axis=1).tolist()
    prefixes = Counter(tuple(row[:length]) for row in shown for length in range(1, 5))
    saved = sum((count - 1) * items.lengths[prefix[-1]] for prefix, count in prefixes.items())
    assert saved > grown
