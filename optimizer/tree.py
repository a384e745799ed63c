"""Field order per row, from a prefix tree that is grown level by level for all nodes at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .fixed import Fields
from .grouping import first_of_group, group_keys

Ints = npt.NDArray[np.int64]


def tree_fields(cells: Cells, dependencies: npt.NDArray[np.bool_] | None = None) -> Fields:
    """For each row of distinct rows its columns in prompt order, int32 [rows, columns].

    A node is a set of rows that share a rendered prefix. It picks the column with the largest sum over values of
    length * (count - 1); values that two or more of its rows hold become children, the other rows stay in the
    node and try its other columns. With `dependencies` [columns, columns] a column's gain includes the cells
    that it determines, since they are shared by the same rows.
    """
    num_rows, num_columns = cells.num_rows, cells.num_columns
    prefix = np.full((num_rows, num_columns), -1, dtype=np.int32)
    depth = np.zeros(num_rows, dtype=np.int64)
    weights = cells.id_lengths[cells.ids]  # what each cell still has to give, [rows, columns]
    dependents = _dependents(dependencies, num_columns)
    node = np.zeros(num_rows, dtype=np.int64)
    rows, columns = np.nonzero(weights)
    while len(rows):
        rows, columns, groups, first = _repeated(node, rows, columns, cells.ids)
        if not len(rows):
            break
        # nodes are renumbered densely, so that [nodes, columns] stays small
        node_of_cell = group_keys(node[rows])
        num_nodes = int(node_of_cell.max()) + 1
        weight = weights[rows, columns]
        for column, others in dependents:
            chosen = columns == column
            weight[chosen] += weights[rows[chosen][:, None], others].sum(axis=1)
        slot = node_of_cell * num_columns + columns
        gain = np.bincount(slot, weight, num_nodes * num_columns)
        gain -= np.bincount(slot[first], weight[first], num_nodes * num_columns)
        best = gain.reshape(num_nodes, num_columns).argmax(axis=1)
        moved = columns == best[node_of_cell]
        moved_rows = rows[moved]
        node[rows] = num_rows + node_of_cell  # rows that stay
        node[moved_rows] = groups[moved]
        prefix[moved_rows, depth[moved_rows]] = columns[moved]
        depth[moved_rows] += 1
        weights[moved_rows, columns[moved]] = 0
        rows, columns = rows[~moved], columns[~moved]
    return complete_fields(prefix, cells.ids == 0)


def _repeated(node: Ints, rows: Ints, columns: Ints, ids: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The cells that another row of the same node has too: rows, columns, group of each; first of each."""
    size = int(ids.max()) + 1
    groups = group_keys(node[rows] * size + ids[rows, columns])
    repeated = np.bincount(groups)[groups] > 1
    rows, columns = rows[repeated], columns[repeated]
    groups = group_keys(groups[repeated])
    return rows, columns, groups, first_of_group(groups)


def _dependents(dependencies: npt.NDArray[np.bool_] | None, num_columns: int) -> list[tuple[int, Ints]]:
    if dependencies is None:
        return []
    others = dependencies & ~np.eye(num_columns, dtype=bool)
    return [(int(column), np.flatnonzero(others[column])) for column in np.flatnonzero(others.any(axis=1))]


def complete_fields(prefix: Fields, empty: npt.NDArray[np.bool_]) -> Fields:
    """Prefixes of columns (-1 where undecided) continued with the columns that are missing, empty cells first."""
    num_rows, num_columns = prefix.shape
    used = np.zeros((num_rows, num_columns + 1), dtype=bool)
    np.put_along_axis(used, prefix.astype(np.int64), True, axis=1)  # -1 marks the spare column
    used = used[:, :num_columns]
    length = (prefix >= 0).sum(axis=1)
    # rank: decided columns by place, then empty cells, then the rest in table order
    rank = np.where(empty, num_columns, 2 * num_columns) + np.arange(num_columns)
    place = np.broadcast_to(np.arange(num_columns), prefix.shape)
    inside = place < length[:, None]
    row_of = np.broadcast_to(np.arange(num_rows)[:, None], prefix.shape)
    rank[row_of[inside], prefix[inside]] = place[inside]
    return np.argsort(rank, axis=1, kind="stable").astype(np.int32)
