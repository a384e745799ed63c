"""The exact method against brute force, the greedy ones against the exact one."""

from __future__ import annotations

from itertools import pairwise, permutations, product, takewhile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import METHODS, Cells, OptimizerError, deduplicate, encode, find_dependencies, reorder
from llmsql.optimizer.dependencies import equivalent_columns, given_dependencies
from llmsql.optimizer.ggr import ggr_fields
from llmsql.optimizer.ophr import ophr_fields
from llmsql.optimizer.prefix_hits import hit_cells
from llmsql.optimizer.prefix_tree import prompt_sequences
from llmsql.optimizer.tree import tree_fields


def random_cells(generator: np.random.Generator, max_rows: int, max_columns: int) -> Cells:
    """Distinct rows over few values of different lengths."""
    rows, columns = generator.integers(2, max_rows + 1), generator.integers(1, max_columns + 1)
    values = generator.integers(2, 5, columns)
    table = {f"c{i}": [f"v{v}" * (1 + int(v)) for v in generator.integers(0, values[i], rows)] for i in range(columns)}
    cells = encode(pa.table(table))
    return cells.select_rows(deduplicate(cells).first)


def saved(cells: Cells, fields: np.ndarray) -> int:
    return int(hit_cells(prompt_sequences(cells, fields), len(cells.id_lengths)) @ cells.id_lengths)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_ophr_is_the_best_of_all_field_orders(seed: int) -> None:
    cells = random_cells(np.random.default_rng(seed), 4, 3)
    orders = list(permutations(range(cells.num_columns)))
    best = max(saved(cells, np.array(fields)) for fields in product(orders, repeat=cells.num_rows))
    assert reorder(cells, method="ophr").stats.hit_units == best


@given(st.integers(0, 10_000), st.sampled_from([(2, 3), (3, 3), (4, 2)]))
@settings(deadline=None, max_examples=25)
def test_ophr_is_the_best_of_all_orders_of_rows_and_fields(seed: int, size: tuple[int, int]) -> None:
    # as the paper counts, against the row before only, so that the order of rows matters; in plain Python
    cells = random_cells(np.random.default_rng(seed), *size)
    texts = [[texts[code].as_py() for texts, code in zip(cells.texts, codes)] for codes in cells.codes.tolist()]
    field_orders = list(permutations(range(cells.num_columns)))
    best = 0
    for rows in permutations(texts):
        for fields in product(field_orders, repeat=len(rows)):
            prompts = [[row[column] for column in order] for row, order in zip(rows, fields)]
            best = max(best, sum(shared_length(*pair) for pair in pairwise(prompts)))
    assert reorder(cells, method="ophr").stats.hit_units == best


def shared_length(left: list[str], right: list[str]) -> int:
    return sum(len(cell) for cell, _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right)))


def test_ophr_sets_aside_what_is_shared_and_solves_parts_apart() -> None:
    # 40 rows, but all share one cell, and beyond it only four at a time hang together
    table = pa.table(
        {"all": ["x"] * 40, "part": [i // 4 for i in range(40)], "pair": [i // 2 for i in range(40)], "id": range(40)}
    )
    fields = reorder(table, method="ophr").fields
    assert fields.tolist() == [[0, 1, 2, 3]] * 40


def test_ophr_refuses_what_would_take_for_ever() -> None:
    generator = np.random.default_rng(0)
    table = pa.table({f"c{i}": generator.integers(0, 3, 30) for i in range(4)})
    with pytest.raises(OptimizerError, match=r"rows hang together, at most 14 can be searched; .* method 'tree'"):
        reorder(table, method="ophr")


def test_ophr_of_no_rows_no_columns_and_equal_rows() -> None:
    for table in (pa.table({}), pa.table({"a": pa.array([], pa.string())}), pa.table({"a": ["x"] * 40, "b": [1] * 40})):
        assert reorder(table, method="ophr").fields.shape == (table.num_rows, table.num_columns)


def test_tree_is_exact_on_small_tables() -> None:
    generator = np.random.default_rng(0)
    for _ in range(400):
        cells = random_cells(generator, 8, 4)
        assert saved(cells, tree_fields(cells)) == saved(cells, ophr_fields(cells))


@pytest.mark.parametrize(
    ("size", "count", "equal", "least", "mean"), [((2, 8), 120, 0.9, 0.8, 0.99), ((9, 12), 24, 0.5, 0.8, 0.975)]
)
def test_the_greedy_part_alone_is_near_the_optimum(
    size: tuple[int, int], count: int, equal: float, least: float, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmsql.optimizer.tree.EXACT_ROWS", 0)
    generator, ratios = np.random.default_rng(1), []
    while len(ratios) < count:
        cells = random_cells(generator, size[1], 4)
        if cells.num_rows >= size[0]:
            best = saved(cells, ophr_fields(cells))
            ratios.append(saved(cells, tree_fields(cells)) / best if best else 1.0)
    assert max(ratios) <= 1
    assert np.mean(np.array(ratios) == 1) >= equal
    assert min(ratios) >= least
    assert np.mean(ratios) >= mean


def test_ggr_follows_the_published_algorithm() -> None:
    # "long" and its partner are worth most together, the first of them leads; the rest stands by statistics
    table = pa.table(
        {
            "short": ["s"] * 6 + ["t"] * 6,
            "partner": ["p"] * 8 + ["q"] * 4,
            "long": ["a long value"] * 8 + ["b"] * 4,
            "unique": [str(i) for i in range(12)],
        }
    )
    cells = encode(table)
    assert np.array_equal(find_dependencies(cells)[1:3, 1:3], np.ones((2, 2)))
    fields = ggr_fields(cells, early_stop=0)
    assert fields[:8].tolist() == [[1, 2, 0, 3]] * 8
    assert sorted(fields[8].tolist()) == [0, 1, 2, 3]
    # "unique" never repeats, so it stands last even where its score would not put it there
    assert (fields[:, 3] == 3).all()
    # nothing is worth the early stop: statistics decide for all rows alike
    assert len(np.unique(ggr_fields(cells, early_stop=10**9), axis=0)) == 1


def test_random_weights_follow_the_seed() -> None:
    generator = np.random.default_rng(3)
    table = pa.table({f"c{i}": generator.integers(0, 4, 40) for i in range(5)})
    first, again = (reorder(table, method="tree", seed=1) for _ in range(2))
    assert np.array_equal(first.fields, again.fields)


def test_given_dependencies_are_trusted() -> None:
    # the partner follows at once because the caller says so, though one row breaks the rule
    table = pa.table(
        {
            "key": ["a long key value"] * 6 + ["k"] * 6,
            "other": ["o"] * 3 + ["p"] * 9,
            "partner": ["x"] * 5 + ["y"] * 7,
        }
    )
    pairs = [("key", "partner"), ("partner", "key")]
    known = given_dependencies(table.column_names, pairs)
    assert known.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert ggr_fields(encode(table), known, early_stop=0)[0].tolist() == [0, 2, 1]
    for method in METHODS:
        if method != "ophr":
            assert sorted(reorder(table, method=method, dependencies=pairs).rows.tolist()) == list(range(12))


def test_chains_and_cycles_of_given_dependencies() -> None:
    known = given_dependencies("abcd", [("a", "b"), ("b", "c"), ("c", "a")])
    assert known.tolist() == [[True, True, True, False]] * 3 + [[False, False, False, True]]
    assert equivalent_columns(known).tolist() == [0, 0, 0, 3]
    with pytest.raises(OptimizerError, match=r"dependency \('a', 'z'\) is not a pair of columns .* columns are a, b"):
        given_dependencies("ab", [("a", "z")])
