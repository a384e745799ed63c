"""The prefix tree (trie) that rows make, walked level by level over whole cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cells import Cells

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The rows that still share a prefix at one depth, in depth-first order."""

    depth: int  # the cell of each row that tells its nodes of this level apart
    rows: Ints  # [active] rows of the sequence matrix
    positions: Ints  # [active] their places in the depth-first order of all rows, ascending
    parents: Ints  # [active] the node of the level above, numbered from 0 in depth-first order
    starts: npt.NDArray[np.bool_]  # [active] whether the row is the first of its node


def prompt_sequences(cells: Cells, fields: npt.NDArray[np.integer]) -> Ints:
    """Global cell ids in prompt order [rows, columns] for such fields; NULL cells are gone, 0 pads."""
    sequences: Ints = np.take_along_axis(cells.ids, fields.astype(np.int64), axis=1)
    empty = sequences == 0
    if (empty[:, :-1] & ~empty[:, 1:]).any():
        sequences = np.take_along_axis(sequences, np.argsort(empty, axis=1, kind="stable"), axis=1)
    return sequences


def walk(sequences: Ints) -> Iterator[Level]:
    """The levels of the prefix tree; a row leaves once no other row shares its prefix, or its cells end.

    Children of a node come in ascending order of their cell ids.
    """
    num_rows, num_columns = sequences.shape
    size = int(sequences.max()) + 1 if sequences.size else 1
    rows = positions = np.arange(num_rows)
    parents = np.zeros(num_rows, dtype=np.int64)
    for depth in range(num_columns):
        keys = parents * size + sequences[rows, depth]
        order = np.argsort(keys, kind="stable")
        rows, keys = rows[order], keys[order]
        starts = np.ones(len(rows), dtype=bool)
        starts[1:] = keys[1:] != keys[:-1]
        yield Level(depth, rows, positions, parents, starts)
        nodes = np.cumsum(starts) - 1
        active = (np.bincount(nodes, minlength=1)[nodes] > 1) & (sequences[rows, depth] > 0)
        if not active.any():
            return
        rows, positions, nodes = rows[active], positions[active], nodes[active]
        parents = np.cumsum(np.concatenate([[0], nodes[1:] != nodes[:-1]]))


def depth_first(sequences: Ints) -> Ints:
    """The order of rows, int64 [rows], in which rows with a common prefix stand together at every depth."""
    order = np.arange(len(sequences))
    for level in walk(sequences):
        order[level.positions] = level.rows
    return order
