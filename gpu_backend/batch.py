"""One step as flat arrays: the packed tokens, where their KV goes, and the node table that attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .node import Node
from .step import Chunk, Step

Ints = npt.NDArray[np.int32]


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
    slots: npt.NDArray[np.int64]  # [tokens] where each token's KV is written
    logit_index: npt.NDArray[np.int64]  # [logits] which packed tokens need logits
    readers: list[tuple[Chunk, int]]  # chunks whose logits are read, and their first logit row
    table: TableArrays
    block_size: int


def build_batch(step: Step, block_size: int) -> StepBatch:
    """Flatten a step; O(tokens + nodes on all paths)."""
    chunks = step.chunks
    starts = np.array([chunk.start for chunk in chunks], np.int64)
    lengths = np.array([chunk.length for chunk in chunks], np.int64)
    query_start = _starts(lengths)
    table, own = _build_table(chunks, query_start, starts, block_size)
    token_ids = np.concatenate([chunk.node.tokens[chunk.start : chunk.end] for chunk in chunks])
    positions = ragged_arange(table.query_position.astype(np.int64), lengths)
    places = ragged_arange(table.node_offset[own] + starts, lengths)
    first_block = np.repeat(table.node_block_start[own], lengths)
    slots = table.blocks[first_block + places // block_size].astype(np.int64) * block_size + places % block_size
    logit_index: list[int] = []
    readers = []
    for chunk, end in zip(chunks, query_start[1:].tolist()):
        if chunk.sequences:
            readers.append((chunk, len(logit_index)))
            logit_index.extend(range(end - chunk.length, end) if chunk.all_logits else [end - 1])
    return StepBatch(
        token_ids=token_ids,
        positions=positions.astype(np.int32),
        slots=slots,
        logit_index=np.array(logit_index, np.int64),
        readers=readers,
        table=table,
        block_size=block_size,
    )


def ragged_arange(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`arange(start, start + length)` of every pair, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    ranges: npt.NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return ranges


def _build_table(
    chunks: list[Chunk], query_start: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], block_size: int
) -> tuple[TableArrays, npt.NDArray[np.int64]]:
    """The table, and each row's own node."""
    paths: dict[Node, list[int]] = {}  # node -> ids of the nodes from the root down to it
    nodes: list[Node] = []

    def path_of(node: Node) -> list[int]:
        new = []
        above: Node | None = node
        while above is not None and above.parent is not None and above not in paths:
            new.append(above)
            above = above.parent
        path = paths.get(above, []) if above is not None else []
        for below in reversed(new):
            path = paths[below] = [*path, len(nodes)]
            nodes.append(below)
        return path

    row_paths = [path_of(chunk.node) for chunk in chunks]
    valid = {chunk.node: chunk.end for chunk in chunks}
    path_nodes = [node for path in row_paths for node in path]
    own = np.array([path[-1] for path in row_paths], np.int64)
    position = np.array([node.position for node in nodes], np.int32)
    table = TableArrays(
        node_block_start=_starts([len(node.blocks) for node in nodes]).astype(np.int32),
        blocks=np.array([block for node in nodes for block in node.blocks], np.int32),
        node_offset=np.array([node.offset for node in nodes], np.int32),
        node_len=np.array([max(node.num_computed, valid.get(node, 0)) for node in nodes], np.int32),
        node_position=position,
        path_start=_starts([len(path) for path in row_paths]).astype(np.int32),
        path_nodes=np.array(path_nodes, np.int32),
        query_start=query_start.astype(np.int32),
        query_position=(position[own] + starts).astype(np.int32),
    )
    return table, own


def _starts(lengths: list[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
