"""The prefix tree (trie) that rows make, walked level by level over whole cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .grouping import AnyInts, Indices, Ints, stable_order


@dataclass(frozen=True)
class Level:
    """The rows that still share a prefix at one depth, in depth-first order."""

    depth: int  # the cell of each row that tells its nodes of this level apart
    rows: Indices  # [active] rows of the sequence matrix
    cells: AnyInts  # [active] their cells at that depth
    positions: Indices  # [active] their places in the depth-first order of all rows, ascending
    parents: Indices  # [active] the node of the level above, numbered from 0 in depth-first order
    starts: npt.NDArray[np.bool_]  # [active] whether the row is the first of its node


def prompt_sequences(cells: Cells, fields: AnyInts) -> Indices:
    """Global cell ids in prompt order [rows, columns] for such fields; NULL cells are gone, 0 pads.

    The ids of one place stand together in memory.
    """
    num_rows, num_columns = fields.shape
    sequences = np.zeros((num_rows, num_columns), dtype=np.int32, order="F")
    if not sequences.size:
        return sequences
    codes = np.ravel(cells.codes, order="F")  # without a copy where columns stand together, as they do
    firsts = cells.offsets[:-1].astype(np.int32)
    all_rows = np.arange(num_rows)
    has_null = int(cells.codes.min()) < 0
    filled = np.zeros(num_rows, dtype=np.int32)  # cells that each row has already
    for place in range(num_columns):
        columns = fields[:, place]
        if fields.strides[0] == 0:
            found, ids = cells.codes[:, columns[0]], firsts[columns[0]]
        else:
            found, ids = codes[columns * np.int64(num_rows) + all_rows], firsts[columns]
        if not has_null:
            np.add(found, ids, out=sequences[:, place])
            continue
        present = found >= 0
        rows = np.flatnonzero(present)
        sequences[rows, filled[rows]] = (found + ids)[rows]
        filled += present
    return sequences


def walk(sequences: AnyInts) -> Iterator[Level]:
    """The levels of the prefix tree; a row leaves once no other row shares its prefix, or its cells end.

    Children of a node come in ascending order of their cell ids.
    """
    num_rows, num_columns = sequences.shape
    size = int(sequences.max()) + 1 if sequences.size else 1
    rows = positions = np.arange(num_rows, dtype=np.int32)
    parents = np.zeros(num_rows, dtype=np.int32)
    for depth in range(num_columns):
        cells = sequences[rows, depth] if depth else sequences[:, 0]
        keys = parents * np.int64(size) + cells
        order = stable_order(keys, (int(parents[-1]) + 1) * size if num_rows else 1)
        rows, keys, cells = rows[order], keys[order], cells[order]
        del order
        starts = np.ones(len(rows), dtype=bool)
        np.not_equal(keys[1:], keys[:-1], out=starts[1:])
        del keys
        yield Level(depth, rows, cells, positions, parents, starts)
        nodes = np.cumsum(starts, dtype=np.int32) - 1
        active = cells > 0
        active &= ~starts | np.append(~starts[1:], False)  # some other row has the same node
        if not active.any():
            return
        rows, positions, nodes = rows[active], positions[active], nodes[active]
        parents = np.zeros(len(rows), dtype=np.int32)
        np.cumsum(nodes[1:] != nodes[:-1], out=parents[1:])


def depth_first(sequences: AnyInts) -> Ints:
    """The order of rows, int64 [rows], in which rows with a common prefix stand together at every depth."""
    order = np.arange(len(sequences))
    for level in walk(sequences):
        order[level.positions] = level.rows
    return order
