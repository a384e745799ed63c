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
    rows: AnyInts  # [active] rows of the sequence matrix
    cells: AnyInts  # [active] their cells at that depth
    positions: Indices  # [active] their places in the depth-first order of all rows, ascending
    parents: Indices  # [active] the node of the level above, numbered from 0 in depth-first order
    starts: npt.NDArray[np.bool_]  # [active] whether the row is the first of its node


class PromptCells:
    """The cells of each row in prompt order, looked up where they are needed; NULL cells are gone."""

    def __init__(self, cells: Cells, fields: AnyInts, ranks: Indices | None = None):
        """`fields` are [rows, columns]; `ranks` [global cell ids], where given, stand for the ids."""
        self.shape = fields.shape
        self.size = (int(cells.offsets[-1]) if ranks is None else int(ranks.max())) + 1  # ids are below it
        self._cells, self._ranks = cells, ranks
        self._fields = _without_null(cells, fields) if cells.has_null else fields
        self._codes = np.ravel(cells.codes, order="F")  # without a copy where columns stand together, as they do
        self._firsts = cells.offsets[:-1].astype(np.int32)

    def at(self, rows: AnyInts, depth: int) -> Indices:
        """The cells of some rows at a depth, [rows]; 0 where a row has no more."""
        if self._fields.strides[0] == 0 and self.shape[0]:  # the same for all rows
            column = int(self._fields[0, depth])
            codes, firsts = self._cells.codes[rows, column], self._firsts[column]
        else:
            columns = self._fields[rows, depth]
            codes, firsts = self._codes[columns * np.int64(self.shape[0]) + rows], self._firsts[columns]
        ids: Indices = codes + firsts
        if self._cells.has_null:
            ids[codes < 0] = 0
        return ids if self._ranks is None else self._ranks[ids]

    def columns(self, rows: AnyInts, depth: int) -> AnyInts:
        """The columns that these cells are of, [rows]."""
        columns: AnyInts = self._fields[rows, depth]
        return columns


def _without_null(cells: Cells, fields: AnyInts) -> AnyInts:
    """The fields with those that are NULL behind the others."""
    sorted_fields = np.empty(fields.shape, dtype=fields.dtype)
    rows = np.arange(len(fields), dtype=np.int32)
    filled = np.zeros(len(fields), dtype=np.int32)  # places from the left that are taken
    end = np.full(len(fields), fields.shape[1] - 1, dtype=np.int32)  # the last place that is free
    for place in range(fields.shape[1]):
        columns = fields[:, place]
        present = cells.codes[rows, columns] >= 0
        sorted_fields[rows, np.where(present, filled, end)] = columns
        filled += present
        end -= ~present
    return sorted_fields


def prompt_sequences(cells: Cells, fields: AnyInts) -> Indices:
    """Global cell ids in prompt order [rows, columns] for such fields; NULL cells are gone, 0 pads.

    The ids of one place stand together in memory.
    """
    sequences = np.zeros(fields.shape, dtype=np.int32, order="F")
    prompts, rows = PromptCells(cells, fields), np.arange(len(fields))
    for place in range(fields.shape[1]):
        sequences[:, place] = prompts.at(rows, place)
    return sequences


def walk(sequences: AnyInts | PromptCells, rows: AnyInts | None = None, depth: int = 0) -> Iterator[Level]:
    """The levels of the prefix tree; a row leaves once no other row shares its prefix, or its cells end.

    Children of a node come in ascending order of their cells. `rows` (all when None) share their cells up to `depth`,
    from which the walk starts; positions count from the first of them.
    """
    size = sequences.size if isinstance(sequences, PromptCells) else int(sequences.max(initial=0)) + 1
    rows = np.arange(sequences.shape[0], dtype=np.int32) if rows is None else rows
    positions = np.arange(len(rows), dtype=np.int32)
    parents = np.zeros(len(rows), dtype=np.int32)
    for level in range(depth, sequences.shape[1] if len(rows) else 0):
        cells = sequences.at(rows, level) if isinstance(sequences, PromptCells) else sequences[rows, level]
        keys = parents * np.int64(size) + cells
        order = stable_order(keys, (int(parents[-1]) + 1) * size)
        rows, keys, cells = rows[order], keys[order], cells[order]
        starts = np.ones(len(rows), dtype=bool)
        np.not_equal(keys[1:], keys[:-1], out=starts[1:])
        del order, keys
        yield Level(level, rows, cells, positions, parents, starts)
        nodes = np.cumsum(starts, dtype=np.int32) - 1
        active = cells > 0
        active &= ~starts | np.append(~starts[1:], False)  # some other row has the same node
        if not active.any():
            return
        rows, positions, nodes = rows[active], positions[active], nodes[active]
        parents = np.zeros(len(rows), dtype=np.int32)
        np.cumsum(nodes[1:] != nodes[:-1], out=parents[1:])


def depth_first(sequences: AnyInts | PromptCells) -> Ints:
    """The order of rows, int64 [rows], in which rows with a common prefix stand together at every depth."""
    order = np.arange(sequences.shape[0])
    for level in walk(sequences):
        order[level.positions] = level.rows
    return order
