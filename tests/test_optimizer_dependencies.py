"""Functional dependencies: found, approximate, given, and named."""

from __future__ import annotations

from collections import Counter
from math import exp, lgamma, log

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import Dependency, OptimizerError, dependency_errors, encode, find_dependencies, reorder
from llmsql.optimizer.approximate_dependencies import MISSED, SAMPLE, _disagreements_explained
from llmsql.optimizer.dependencies import chain, equivalent_columns, given_dependencies

TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.tuples(*[st.none() | st.integers(0, 2)] * columns), max_size=12).map(
        lambda rows: pa.table({f"c{i}": pa.array([row[i] for row in rows], pa.int64()) for i in range(columns)})
    )
)


def least_share_to_remove(determinant: list[object], dependent: list[object]) -> float:
    """The definition, value by value: of the rows of one value those with the most frequent partner can stay."""
    partners: dict[object, Counter[object]] = {}
    for left, right in zip(determinant, dependent):
        partners.setdefault(left, Counter())[right] += 1
    kept = sum(counts.most_common(1)[0][1] for counts in partners.values())
    return (len(determinant) - kept) / len(determinant) if determinant else 0.0


@given(TABLES, st.sampled_from([0.0, 0.1, 0.25, 0.6]), st.integers(0, 5))
@settings(deadline=None)
def test_errors_are_the_least_share_of_rows_to_remove(table: pa.Table, tolerance: float, seed: int) -> None:
    cells = encode(table)
    errors = dependency_errors(cells, tolerance, seed)
    columns = [column.to_pylist() for column in table.columns]
    for left, determinant in enumerate(columns):
        for right, dependent in enumerate(columns):
            wanted = least_share_to_remove(determinant, dependent)
            assert errors[left, right] == (wanted if wanted <= tolerance else 1.0)
    assert ((errors == 0) == find_dependencies(cells)).all()


def test_one_row_of_many_breaks_an_exact_dependency_and_not_an_approximate_one() -> None:
    rows = 20_000
    name = np.arange(rows) % 400
    typo = name.copy()
    typo[12_345] = 401
    cells = encode(pa.table({"name": name, "typo": typo, "group": name % 7, "random": (np.arange(rows) * 7919) % 389}))
    found = find_dependencies(cells)
    assert found.tolist() == [
        [True, False, True, False],
        [True, True, True, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    errors = dependency_errors(cells, 0.001)
    assert ((errors == 0) == found).all()
    assert errors[0, 1] == 1 / rows
    assert (errors[3] == [1, 1, 1, 0]).all()


@pytest.mark.parametrize("tolerance", [1e-4, 0.01, 0.05, 0.2, 0.4])
def test_the_sample_rules_out_what_is_within_the_tolerance_as_rarely_as_is_said(tolerance: float) -> None:
    probability, limit = 2 * tolerance, _disagreements_explained(2 * tolerance)
    tail = sum(
        exp(
            lgamma(SAMPLE + 1)
            - lgamma(count + 1)
            - lgamma(SAMPLE - count + 1)
            + count * log(probability)
            + (SAMPLE - count) * log(1 - probability)
        )
        for count in range(limit + 1, SAMPLE + 1)
    )
    assert tail <= MISSED
    assert limit < SAMPLE * (probability + 0.08)  # and it does rule out most others
    assert _disagreements_explained(0) == 0
    assert _disagreements_explained(1.4) == SAMPLE


@given(TABLES, st.sampled_from(["auto", "tree", "ggr"]))
@settings(deadline=None)
def test_a_tolerance_never_costs_hits(table: pa.Table, method: str) -> None:
    cells = encode(table)
    exact, tolerant = reorder(cells, method=method), reorder(cells, method=method, tolerance=0.2)
    assert tolerant.stats.hit_rate >= exact.stats.hit_rate


def test_columns_that_are_nearly_equivalent_are_tried_as_one() -> None:
    generator = np.random.default_rng(0)
    product = generator.integers(0, 60, 3_000)
    name = np.where(generator.random(3_000) < 0.002, 999, product)
    table = pa.table({"id": product, "name": [f"product {n}" for n in name], "review": range(3_000)})
    assert reorder(table).stats.dependencies == ()
    stats = reorder(table, tolerance=0.01).stats
    (dependency,) = stats.dependencies
    assert (dependency.determinant, dependency.dependent, dependency.mutual) == ("id", "name", True)
    assert dependency.source == "approximate"
    assert 0 < dependency.error < 0.005
    assert {"tree", "tree (approximate dependencies)", "ggr (approximate dependencies)"} < set(stats.candidates)
    assert "id = name (approximate, but for 0." in reorder(table, tolerance=0.01).explain()
    with pytest.raises(OptimizerError, match=r"a share of rows from 0 to below 1, got 1\.5"):
        reorder(table, tolerance=1.5)


def test_errors_of_chains_add_up() -> None:
    errors = np.array([[0, 0.01, 1], [1, 0, 0.02], [1, 1, 0]])
    assert chain(errors).tolist() == [[0, 0.01, 0.03], [1, 0, 0.02], [1, 1, 0]]


def test_what_is_given_follows_from_keys_lists_and_chains() -> None:
    names = ["order", "customer", "city", "country", "note"]
    known = given_dependencies(names, [("order", "*"), ("customer", ["city", "note"]), ("city", "country")])
    assert known[0].all()
    assert known[1].tolist() == [False, True, True, True, True]
    assert known[2].tolist() == [False, False, True, True, False]
    assert equivalent_columns(known).tolist() == [0, 1, 2, 3, 4]
    # a column called * is that column
    assert given_dependencies(["a", "*", "b"], [("a", "*")])[0].tolist() == [True, True, False]
    for wrong in [("a",), ("a", "b", "c"), ("a", ["z"]), ("z", "a"), "ab", (["a", "b"], "a")]:
        with pytest.raises(OptimizerError, match=r"is not a pair of columns \(a determines b\), a column and a list"):
            given_dependencies(["a", "b"], [wrong])  # type: ignore[list-item]


def test_dependencies_are_named_without_those_that_follow_or_say_nothing() -> None:
    rows = 12
    product = np.arange(rows) // 2
    table = pa.table(
        {
            "name": [f"n{p}" for p in product],
            "id": product,
            "brand": product // 2,
            "country": product // 4,
            "constant": [1] * rows,
            "key": range(rows),
        }
    )
    ordering = reorder(table)
    assert ordering.stats.dependencies == (
        Dependency("name", "id", True, "exact"),
        Dependency("name", "brand", False, "exact"),
        Dependency("brand", "country", False, "exact"),
    )
    assert "name = id (exact)" in ordering.explain()
    assert reorder(table, dependencies=[]).stats.dependencies == ()
    stats = reorder(table, dependencies=[("key", "*"), ("id", "brand")]).stats
    assert stats.dependencies == (Dependency("id", "brand", False, "given"),)
    assert reorder(table, method="fixed").stats.dependencies == ()


@given(TABLES, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5))
@settings(deadline=None)
def test_wrong_dependencies_cost_hits_at_most(table: pa.Table, pairs: list[tuple[int, int]]) -> None:
    names = table.column_names
    claimed = [(names[left % len(names)], names[right % len(names)]) for left, right in pairs]
    ordering = reorder(table, dependencies=claimed)
    assert sorted(ordering.rows.tolist()) == list(range(table.num_rows))
    assert all(sorted(fields) == list(range(len(names))) for fields in ordering.fields.tolist())
