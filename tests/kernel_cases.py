"""Batches for the attention tests: a tree of nodes laid out in a shuffled pool, rows over it, and the dense answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmsql.gpu_backend.attention_work import LayerTiles, plan_work
from llmsql.gpu_backend.batch import TableArrays
from llmsql.gpu_backend.cascade import Group
from llmsql.kernels import NodeTable, WorkList
from llmsql.kernels.attention_launch import tile_limits


@dataclass(frozen=True)
class Node:
    parent: int | None
    length: int
    continues: bool = False  # begins in the parent's last block, as after a split inside a block


@dataclass(frozen=True)
class Row:
    node: int  # its path is this node and its ancestors
    position: int  # of the first query token
    queries: int


@dataclass(frozen=True)
class Case:
    table: NodeTable
    query: torch.Tensor  # [tokens, heads, head_dim]
    key_pool: torch.Tensor  # [slots, kv_heads, head_dim]; NaN in every slot that no node owns
    value_pool: torch.Tensor  # [slots, kv_heads, value_dim]; likewise
    paths: list[tuple[torch.Tensor, torch.Tensor, Row]]  # each row's keys and values in order of position
    options: dict[str, Any]  # block_size, scale, sliding_window, softcap

    @property
    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NodeTable]:
        return self.query, self.key_pool, self.value_pool, self.table

    def work(self, *, levels: int = 0, processors: int = 1, min_segment_keys: int = 9) -> WorkList:
        """The work list with the nodes of the first `levels` levels shared where they can be."""
        _, kv_heads, value_dim = self.value_pool.shape
        group = self.query.shape[1] // kv_heads
        limits = tile_limits(key_dim=self.query.shape[2], value_dim=value_dim, group=group, dtype=self.query.dtype)
        layer = LayerTiles(kv_heads, group, limits, self.options["sliding_window"])
        arrays = TableArrays(**{name: tensor.numpy() for name, tensor in vars(self.table).items()})
        groups = shared_groups(self.table, levels)
        work = plan_work(arrays, groups, layer, processors=processors, min_segment_keys=min_segment_keys)
        work.check(self.table, group, window=self.options["sliding_window"])
        return work

    def to(self, device: str) -> Case:
        tensors = [t.to(device) for t in (self.query, self.key_pool, self.value_pool)]
        return Case(self.table.to(device), *tensors, self.paths, self.options)


def build(
    nodes: list[Node],
    rows: list[Row],
    *,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 16,
    value_dim: int | None = None,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    sliding_window: int | None = None,
    softcap: float | None = None,
    spread: float = 1.0,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * spread).to(dtype)

    spare = 3  # blocks that belong to nobody
    free = list(range(spare + sum(-(-node.length // block_size) + 1 for node in nodes)))
    key_pool = torch.full((len(free) * block_size, kv_heads, head_dim), float("nan"), dtype=dtype)
    value_dim = value_dim or head_dim
    value_pool = key_pool.new_full((*key_pool.shape[:2], value_dim), float("nan"))
    random.Random(seed).shuffle(free)

    node_blocks: list[list[int]] = []
    offsets, positions, dense = [], [], []
    for node in nodes:
        parent = node.parent
        position = 0 if parent is None else positions[parent] + nodes[parent].length
        offset, blocks = 0, []
        if parent is not None and node.continues and (offsets[parent] + nodes[parent].length) % block_size:
            offset = (offsets[parent] + nodes[parent].length) % block_size
            blocks = [node_blocks[parent][-1]]
        while len(blocks) * block_size < offset + node.length:
            blocks.append(free.pop())
        keys, values = normal(node.length, kv_heads, head_dim), normal(node.length, kv_heads, value_dim)
        for token in range(node.length):
            slot = blocks[(offset + token) // block_size] * block_size + (offset + token) % block_size
            key_pool[slot], value_pool[slot] = keys[token], values[token]
        node_blocks.append(blocks)
        offsets.append(offset)
        positions.append(position)
        dense.append((keys, values))

    path_nodes = []
    for row in rows:
        path, node_id = [], row.node
        while node_id is not None:
            path.insert(0, node_id)
            node_id = nodes[node_id].parent
        path_nodes.append(path)
    table = NodeTable(
        node_block_start=_starts([len(blocks) for blocks in node_blocks]),
        blocks=_int32([block for blocks in node_blocks for block in blocks]),
        node_offset=_int32(offsets),
        node_len=_int32([node.length for node in nodes]),
        node_position=_int32(positions),
        path_start=_starts([len(path) for path in path_nodes]),
        path_nodes=_int32([node for path in path_nodes for node in path]),
        query_start=_starts([row.queries for row in rows]),
        query_position=_int32([row.position for row in rows]),
    )
    tokens = sum(row.queries for row in rows)
    table.check(block_size, num_blocks=key_pool.shape[0] // block_size, num_tokens=tokens)
    paths = [
        (torch.cat([dense[n][0] for n in path]), torch.cat([dense[n][1] for n in path]), row)
        for path, row in zip(path_nodes, rows)
    ]
    options = {
        "block_size": block_size,
        "scale": head_dim**-0.5,
        "sliding_window": sliding_window,
        "softcap": softcap,
    }
    return Case(table, normal(tokens, heads, head_dim), key_pool, value_pool, paths, options)


def shared_groups(table: NodeTable, levels: int) -> list[Group]:
    """Each node of the first levels that several rows read, and do not write, with those rows."""
    readers: dict[int, list[int]] = {}
    for row in range(table.num_rows):
        path = table.path_nodes[table.path_start[row] : table.path_start[row + 1]].tolist()
        for node in path[:-1][:levels]:
            readers.setdefault(node, []).append(row)
    return [([node], np.array(rows)) for node, rows in sorted(readers.items()) if len(rows) > 1]


def dense_attention(case: Case) -> torch.Tensor:
    """The same answer by one masked softmax per row over keys that never went through the pool, in float64."""
    outputs, token = [], 0
    for keys, values, row in case.paths:
        query = case.query[token : token + row.queries].double()
        token += row.queries
        group = query.shape[1] // keys.shape[1]
        keys = keys.double().repeat_interleave(group, dim=1)
        values = values.double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, keys) * case.options["scale"]
        if case.options["softcap"] is not None:
            scores = case.options["softcap"] * torch.tanh(scores / case.options["softcap"])
        distance = torch.arange(row.position, row.position + row.queries)[:, None] - torch.arange(keys.shape[0])[None]
        hidden = distance < 0
        if case.options["sliding_window"] is not None:
            hidden |= distance >= case.options["sliding_window"]
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs) if outputs else torch.zeros((*case.query.shape[:2], 0), dtype=torch.float64)


def branching(**options: Any) -> Case:
    """Nodes of every awkward length, splits inside a block, a deep path; chunks, decode tokens and empty rows."""
    nodes = [
        Node(None, 6),
        Node(0, 3, continues=True),  # slots 2 and 3 of the root's second block, and one of its own
        Node(1, 1, continues=True),
        Node(2, 0),
        Node(3, 4),
        Node(0, 8),  # two whole blocks
        Node(5, 1),
        Node(6, 9),
        Node(1, 20),
    ]
    rows = [
        Row(4, 13, 1),  # decode at the end of a deep path
        Row(4, 9, 5),  # a chunk that spans two nodes
        Row(5, 6, 0),  # nothing scheduled
        Row(7, 15, 9),  # a whole node
        Row(7, 17, 3),  # a chunk in the middle of a node: later keys are in the pool, and hidden
        Row(0, 0, 6),  # the root itself
        Row(8, 9, 20),
        Row(8, 28, 1),
        Row(6, 14, 1),
        Row(0, 0, 1),  # one key
    ]
    return build(nodes, rows, **options)


def random_case(seed: int, **options: Any) -> Case:
    """A random tree of up to nine nodes with up to six rows, each a random run of positions on its path."""
    draw = random.Random(seed)
    nodes = [Node(None, draw.randint(1, 12))]
    for _ in range(draw.randint(0, 8)):
        parent = draw.randrange(len(nodes))
        # Only one child may write into what is left of its parent's block.
        taken = any(node.parent == parent and node.continues for node in nodes)
        nodes.append(Node(parent, draw.randint(0, 12), continues=not taken and draw.random() < 0.6))
    ends = []
    for node in nodes:
        ends.append(node.length + (0 if node.parent is None else ends[node.parent]))
    rows = []
    for _ in range(draw.randint(1, 6)):
        node = draw.randrange(len(nodes))
        position = draw.randrange(ends[node])
        rows.append(Row(node, position, draw.randint(0, min(7, ends[node] - position))))
    settings: dict[str, Any] = {
        "block_size": draw.choice([1, 2, 3, 4, 16]),
        "sliding_window": draw.choice([None, None, 1, 3, 8, 100]),
        "softcap": draw.choice([None, None, 1.5, 30.0]),
        "kv_heads": draw.choice([1, 2]),
        "head_dim": draw.choice([16, 20]),
        "value_dim": draw.choice([None, None, 8]),
    }
    settings["heads"] = settings["kv_heads"] * draw.choice([1, 2, 3])
    return build(nodes, rows, seed=seed, **(settings | options))


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _starts(lengths: list[int]) -> torch.Tensor:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return _int32(starts)
