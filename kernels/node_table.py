"""Where the keys and values of a batch lie in the paged pool, stated once per node of the batch's prefix tree."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NodeTable:
    """Attention metadata of one step: nodes own tokens in the pool, paths name a row's nodes, rows own query tokens.

    A node is a run of tokens of the prefix tree. Rows that share a prefix name the same node, so a block list is
    stored once per node and not once per row. All tensors are int32, one-dimensional, contiguous, on one device.

    Token `j` of node `n` lies in the slot
    `blocks[node_block_start[n] + (node_offset[n] + j) // block_size] * block_size + (node_offset[n] + j) % block_size`.

    A row is one scheduled run of query tokens: a chunk of a prompt or one decoded token. Query `i` of row `r` stands at
    position `query_position[r] + i` and sees the keys of the row's path at that position and before. The keys of a
    step are written before attention reads them, so a row may see nodes that other rows compute in the same step.
    """

    node_block_start: torch.Tensor  # [nodes + 1] where a node's blocks begin in `blocks`
    blocks: (
        torch.Tensor
    )  # [sum of blocks over nodes] block ids; two nodes share one where a node was split inside a block
    node_offset: torch.Tensor  # [nodes] slot of the node's first token within its first block
    node_len: torch.Tensor  # [nodes] tokens whose keys and values are valid once this step has written its own
    node_position: torch.Tensor  # [nodes] absolute position of the node's first token
    path_start: torch.Tensor  # [rows + 1] where a row's nodes begin in `path_nodes`
    path_nodes: torch.Tensor  # [sum of nodes over paths] node ids from the root down, contiguous in position
    query_start: torch.Tensor  # [rows + 1] where a row's tokens begin among the step's packed query tokens
    query_position: torch.Tensor  # [rows] absolute position of the row's first query token

    @property
    def num_nodes(self) -> int:
        """Number of nodes, read from the shape (no device synchronisation)."""
        return int(self.node_len.shape[0])

    @property
    def num_rows(self) -> int:
        """Number of rows, read from the shape (no device synchronisation)."""
        return int(self.query_position.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> NodeTable:
        """The same table on `device`; tensors that are there already are not copied."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return NodeTable(**moved)

    def check(self, block_size: int, *, num_blocks: int | None = None, num_tokens: int | None = None) -> None:
        """Assert the invariants that the kernels rely on; for tests, it copies the table to the host.

        `num_blocks` is the size of the pool and `num_tokens` the number of packed query tokens, where they are known.
        Raises AssertionError naming the first node or row that is wrong.
        """
        for field in fields(self):
            tensor = getattr(self, field.name)
            assert str(tensor.dtype) == "torch.int32", f"{field.name} is {tensor.dtype}, not int32"
            assert tensor.dim() == 1, f"{field.name} has {tensor.dim()} dimensions, not 1"
            assert tensor.is_contiguous(), f"{field.name} is not contiguous"
            assert tensor.device == self.blocks.device, f"{field.name} is on another device than blocks"
        _check_starts("node_block_start", self.node_block_start.tolist(), self.num_nodes, int(self.blocks.shape[0]))
        _check_starts("path_start", self.path_start.tolist(), self.num_rows, int(self.path_nodes.shape[0]))
        _check_starts("query_start", self.query_start.tolist(), self.num_rows, num_tokens)
        self._check_nodes(block_size, num_blocks)
        self._check_paths()

    def _check_nodes(self, block_size: int, num_blocks: int | None) -> None:
        starts = self.node_block_start.tolist()
        offsets, lengths, positions = self.node_offset.tolist(), self.node_len.tolist(), self.node_position.tolist()
        assert len(offsets) == len(lengths) == len(positions), "node_offset, node_len, node_position differ in length"
        for node, (offset, length, position) in enumerate(zip(offsets, lengths, positions)):
            assert 0 <= offset < block_size, f"node {node} starts at slot {offset} of a block of {block_size}"
            assert min(length, position) >= 0, f"node {node} has length {length} at position {position}"
            capacity = (starts[node + 1] - starts[node]) * block_size
            assert length == 0 or offset + length <= capacity, (
                f"node {node} needs {offset + length} slots, its blocks hold {capacity}"
            )
        for block in self.blocks.tolist():
            assert block >= 0, f"block id {block} is negative"
            assert num_blocks is None or block < num_blocks, f"block {block} is outside a pool of {num_blocks} blocks"

    def _check_paths(self) -> None:
        starts, nodes = self.path_start.tolist(), self.path_nodes.tolist()
        lengths, positions = self.node_len.tolist(), self.node_position.tolist()
        queries, first_query = self.query_start.tolist(), self.query_position.tolist()
        for row in range(self.num_rows):
            end = 0
            for node in nodes[starts[row] : starts[row + 1]]:
                assert 0 <= node < len(lengths), f"row {row} names node {node} of {len(lengths)}"
                assert positions[node] == end, (
                    f"row {row}: node {node} is at position {positions[node]}, the path before it ends at {end}"
                )
                end += lengths[node]
            num_queries = queries[row + 1] - queries[row]
            assert first_query[row] >= 0, f"row {row} has query position {first_query[row]}"
            assert num_queries == 0 or first_query[row] + num_queries <= end, (
                f"row {row} asks at positions {first_query[row]} to {first_query[row] + num_queries - 1}, "
                f"its path ends at {end}: a query's own key must be on its path"
            )


def _check_starts(name: str, starts: list[int], count: int, total: int | None) -> None:
    assert len(starts) == count + 1, f"{name} has {len(starts)} entries for {count} ranges"
    assert starts[0] == 0, f"{name} begins at {starts[0]}, not at 0"
    assert all(a <= b for a, b in pairwise(starts)), f"{name} decreases"
    assert total is None or starts[-1] == total, f"{name} ends at {starts[-1]}, not at {total}"
