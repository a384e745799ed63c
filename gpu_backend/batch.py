"""One step as flat arrays: the packed tokens, where their KV goes, and the node table that attention reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from .node import Node
from .step import Chunk, Step

Ints = npt.NDArray[np.int32]
LongInts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TableArrays:
    """The fields of `llmsql.kernels.NodeTable` as numpy arrays, before they go to a device."""

    node_block_start: Ints  # [nodes + 1]
    blocks: Ints  # [blocks of all nodes]
    node_offset: Ints  # [nodes]
    node_len: Ints  # [nodes] tokens whose KV is valid after this step's write
    node_position: Ints  # [nodes]
    path_start: Ints  # [rows + 1]
    path_nodes: Ints  # [nodes of all paths]
    query_start: Ints  # [rows + 1]
    query_position: Ints  # [rows]


@dataclass(frozen=True)
class StepBatch:
    """What the model runner needs of a step; a row is one chunk."""

    token_ids: Ints  # [tokens]
    positions: Ints  # [tokens]
    slots: LongInts  # [tokens] where each token's KV is written
    logit_index: LongInts  # [logits] which packed tokens need logits
    readers: list[tuple[Chunk, int]]  # chunks whose logits are read, and their first logit row
    table: TableArrays
    block_size: int
    structure: int
    """Equal to the last step's if rows, paths and query lengths are the same; then, of the table, only
    `query_position` and the length of each row's last node have changed, and more blocks may have come to these.
    Below 0: not known."""


class BatchBuilder:
    """Flattens one step after the other, and keeps what stays the same between them."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._last: _Structure | None = None

    def build(self, step: Step) -> StepBatch:
        """The arrays of a step; O(tokens + nodes on all paths)."""
        structure = self._last = self._structure(step)
        starts = np.array([chunk.start for chunk in step.chunks], np.int64)
        table = structure.table(starts)
        rows, within = structure.token_rows, structure.token_offsets
        places = (structure.own_offset + starts)[rows] + within
        block = table.blocks[table.node_block_start[structure.own][rows] + places // self.block_size]
        readers, logit_index = _readers(step, structure.query_start)
        return StepBatch(
            token_ids=_token_ids(step, structure.num_single),
            positions=table.query_position[rows] + within,
            slots=block.astype(np.int64) * self.block_size + places % self.block_size,
            logit_index=logit_index,
            readers=readers,
            table=table,
            block_size=self.block_size,
            structure=structure.number,
        )

    def _structure(self, step: Step) -> _Structure:
        last = self._last
        nodes = [chunk.node for chunk in step.chunks]
        lengths = [chunk.length for chunk in step.chunks]
        if last is None:
            return _Structure(0, step.tree_version, nodes, lengths)
        if last.tree_version != step.tree_version or last.row_nodes != nodes or last.row_lengths != lengths:
            return _Structure(last.number + 1, step.tree_version, nodes, lengths)
        return last


def build_batch(step: Step, block_size: int) -> StepBatch:
    """The arrays of one step by itself."""
    return BatchBuilder(block_size).build(step)


class _Structure:
    """What the steps have in common that run the same number of tokens of the same nodes."""

    def __init__(self, number: int, tree_version: int, row_nodes: list[Node], row_lengths: list[int]) -> None:
        self.number = number
        self.tree_version = tree_version
        self.row_nodes = row_nodes
        self.row_lengths = row_lengths
        self.num_single = next((row for row, length in enumerate(row_lengths) if length > 1), len(row_lengths))
        paths = [node.path() for node in row_nodes]
        visits = list(chain.from_iterable(paths))
        nodes = list(dict.fromkeys(visits))  # parents before children
        numbers = {node: number for number, node in enumerate(nodes)}
        self.nodes = nodes
        self.lengths = np.array(row_lengths, np.int64)
        self.query_start = _starts(row_lengths)
        self.token_rows = np.repeat(np.arange(len(row_nodes)), self.lengths)  # [tokens]
        self.token_offsets = ragged_arange(np.zeros(len(row_nodes), np.int64), self.lengths).astype(np.int32)
        self.own = np.array([numbers[node] for node in row_nodes], np.int64)  # [rows] the node of each row's tokens
        self.path_nodes = np.fromiter(map(numbers.__getitem__, visits), np.int32, len(visits))
        self.path_start = _starts([len(path) for path in paths])
        self.node_offset = np.array([node.offset for node in nodes], np.int32)
        self.node_position = np.array([node.position for node in nodes], np.int32)
        self.node_len = np.array([node.num_computed for node in nodes], np.int32)
        self.own_offset = self.node_offset[self.own].astype(np.int64)
        self.block_arrays = [node.block_array() for node in nodes]
        self.block_counts = np.array([len(node.blocks) for node in nodes])
        self.row_block_counts = [len(node.blocks) for node in row_nodes]
        self.lay_out_blocks()

    def lay_out_blocks(self) -> None:
        """Put the nodes' blocks one after the other."""
        self.blocks = np.concatenate(self.block_arrays)
        self.node_block_start = np.zeros(len(self.nodes) + 1, np.int32)
        np.cumsum(self.block_counts, out=self.node_block_start[1:])

    def table(self, starts: LongInts) -> TableArrays:
        """The table of a step in which row `i` runs its node's tokens from `starts[i]` on."""
        counts = [len(node.blocks) for node in self.row_nodes]
        if counts != self.row_block_counts:  # only tails grow, and they are rows of their own
            for row, (count, before) in enumerate(zip(counts, self.row_block_counts)):
                if count != before:
                    node = int(self.own[row])
                    self.block_arrays[node] = self.row_nodes[row].block_array()
                    self.block_counts[node] = count
            self.row_block_counts = counts
            self.lay_out_blocks()
        node_len = self.node_len.copy()
        node_len[self.own] = np.maximum(node_len[self.own], starts + self.lengths)
        return TableArrays(
            node_block_start=self.node_block_start,
            blocks=self.blocks,
            node_offset=self.node_offset,
            node_len=node_len,
            node_position=self.node_position,
            path_start=self.path_start,
            path_nodes=self.path_nodes,
            query_start=self.query_start,
            query_position=(self.node_position[self.own] + starts).astype(np.int32),
        )


def ragged_arange(starts: LongInts, lengths: LongInts) -> LongInts:
    """`arange(start, start + length)` of every pair, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    ranges: LongInts = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return ranges


def _token_ids(step: Step, num_single: int) -> Ints:
    """The packed tokens; the first `num_single` chunks have one each, which is read much faster than a slice."""
    single = np.array([chunk.node.tokens.item(chunk.start) for chunk in step.chunks[:num_single]], np.int32)
    longer = step.chunks[num_single:]
    if not longer:
        return single
    return np.concatenate([single, *(chunk.node.tokens[chunk.start : chunk.start + chunk.length] for chunk in longer)])


def _readers(step: Step, query_start: Ints) -> tuple[list[tuple[Chunk, int]], LongInts]:
    """The chunks whose logits are read, each with its first row of logits, and the packed tokens of all rows."""
    rows = [row for row, chunk in enumerate(step.chunks) if chunk.sequences]
    reading = step.chunks if len(rows) == len(step.chunks) else [step.chunks[row] for row in rows]
    ends = query_start[1:][rows].astype(np.int64)
    if step.num_label_tokens == 0:
        return list(zip(reading, range(len(rows)))), ends - 1
    counts = [chunk.length if chunk.all_logits else 1 for chunk in reading]
    return list(zip(reading, _starts(counts).tolist())), ragged_arange(ends - counts, np.array(counts))


def _starts(lengths: list[int]) -> Ints:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts
