"""Clusters of rows, and the field orders that follow from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import encode, prefix_hits, reorder
from llmsql.optimizer.clusters import (
    Clusters,
    common_cells,
    depths,
    grow_clusters,
    regroup,
    saved_length,
    without_redundant,
)
from llmsql.optimizer.relocation import relocate_rows

MATRICES = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def as_ids(matrix: list[list[int]]) -> np.ndarray:
    return (np.array(matrix) + 1 + 3 * np.arange(len(matrix[0]))).astype(np.int32)


def rows_of(clusters: Clusters) -> list[list[int]]:
    """The rows of each cluster, those of clusters further inside included."""
    members: list[list[int]] = [[] for _ in range(clusters.num_clusters)]
    for row, cluster in enumerate(clusters.rows.tolist()):
        while cluster >= 0:
            members[cluster].append(row)
            cluster = int(clusters.parents[cluster])
    return members


def savings(clusters: Clusters, ids: np.ndarray) -> int:
    return saved_length(clusters, (common_cells(clusters, ids) > 0).astype(np.int64))


@given(MATRICES)
@settings(deadline=None)
def test_common_cells_are_those_that_all_rows_share(matrix: list[list[int]]) -> None:
    ids = as_ids(matrix)
    clusters = grow_clusters(ids, np.ones(ids.max() + 1))
    common = common_cells(clusters, ids)
    for cluster, rows in enumerate(rows_of(clusters)):
        shared = [column[0] if len(set(column)) == 1 else 0 for column in ids[rows].T.tolist()]
        assert common[cluster].tolist() == shared
    assert (depths(clusters.parents)[1:] == depths(clusters.parents)[clusters.parents[1:]] + 1).all()


@given(MATRICES)
@settings(deadline=None)
def test_leaving_out_and_regrouping_never_lose(matrix: list[list[int]]) -> None:
    ids = as_ids(matrix)
    lengths = np.ones(ids.max() + 1, dtype=np.int64)
    clusters = grow_clusters(ids, lengths.astype(np.float64))
    before = savings(clusters, ids)
    lean, common = without_redundant(clusters, common_cells(clusters, ids))
    assert savings(lean, ids) == before
    assert np.array_equal(common, common_cells(lean, ids))
    regrouped = regroup(lean, common, ids, lengths)
    assert savings(regrouped, ids) >= before


@given(MATRICES)
@settings(deadline=None)
def test_relocation_keeps_clusters_filled_and_rows_where_all_is_shared(matrix: list[list[int]]) -> None:
    ids = as_ids(matrix)
    lengths = np.arange(ids.max() + 1)
    clusters = grow_clusters(ids, lengths.astype(np.float64))
    before = common_cells(clusters, ids)
    moved = relocate_rows(clusters, before, ids, lengths)
    assert all(rows_of(moved))
    assert moved.parents[0] == -1
    assert (moved.parents[1:] >= 0).all()
    # where rows go, they hold all that the rows there had in common; so nothing that was shared there is lost
    after = common_cells(moved, ids)
    assert lengths[after][moved.rows].sum(axis=1).min() >= 0
    if moved.num_clusters == clusters.num_clusters:
        assert (lengths[after].sum(axis=1) >= lengths[before].sum(axis=1)).all()


def test_a_row_moves_to_the_cluster_it_shares_most_with() -> None:
    # rows 0 and 1 stand together by one short cell, but row 1 has all that rows 2 and 3 share
    ids = np.array([[1, 10, 20], [1, 11, 21], [2, 11, 21], [3, 11, 21], [4, 12, 22]], np.int32)
    lengths = np.ones(23, dtype=np.int64)
    lengths[0] = 0
    clusters = Clusters(np.array([-1, 0, 0], np.int32), np.array([1, 1, 2, 2, 0], np.int32))
    moved = relocate_rows(clusters, common_cells(clusters, ids), ids, lengths)
    assert rows_of(moved) == [[0, 1, 2, 3, 4], [0], [1, 2, 3]]
    # also where all rows have a long cell in common
    lengths[5] = 10
    same = np.concatenate([np.full((5, 1), 5, np.int32), ids], axis=1)
    assert rows_of(relocate_rows(clusters, common_cells(clusters, same), same, lengths)) == rows_of(moved)
    # and a row that shares only a part goes beside, for regrouping to find
    ids[1] = [1, 11, 23]
    lengths = np.concatenate([lengths, [1]])
    lengths[11] = 5
    moved = relocate_rows(clusters, common_cells(clusters, ids), ids, lengths)
    assert rows_of(moved) == [[0, 1, 2, 3, 4], [0], [2, 3]]
    regrouped = regroup(moved, common_cells(moved, ids), ids, lengths)
    assert 11 in common_cells(regrouped, ids)[3:]


def test_what_groups_have_in_common_comes_before_them() -> None:
    # a product determines its brand: the long product name is chosen first, yet the brand must stand outside
    products = [f"product {i} with a long name" for i in range(20)]
    table = pa.table(
        {
            "product": [product for product in products for _ in range(5)],
            "brand": [f"brand {i % 2}" for i in range(20) for _ in range(5)],
            "review": [str(i) for i in range(100)],
        }
    )
    ordering = reorder(table, method="tree")
    assert ordering.fields.tolist() == [[1, 0, 2]] * 100
    lengths = [len('"product": "",\n') + len(product) for product in products]
    wanted = 98 * len('"brand": "brand 0",\n') + 4 * sum(lengths)
    assert ordering.stats.hit_units == wanted


def test_rows_that_share_no_cell_share_the_begin_of_one() -> None:
    table = pa.table({"id": [str(i) for i in range(9)], "url": [f"https://example.org/{i}" for i in range(9)]})
    cells = encode(table)
    ordering = reorder(cells, method="tree")
    assert (ordering.fields[:, 0] == 1).all()
    assert prefix_hits(cells, ordering).characters_partial == 8 * len('"url": "https://example.org/')


def test_null_stands_at_one_place_among_rows_that_stand_together() -> None:
    table = pa.table({"a": [None, None, "x", "y"], "b": ["same"] * 4, "c": ["1", "2", "3", "4"]})
    fields = reorder(table, method="tree").fields
    assert fields[0].tolist() == fields[1].tolist()
