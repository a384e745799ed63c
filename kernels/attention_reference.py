"""The torch reference of paged attention: fp32, one query token and one head at a time, for tests to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .node_table import NodeTable


def paged_attention_reference(
    query: torch.Tensor,  # [tokens, heads, key_dim]
    key_pool: torch.Tensor,  # [slots, kv_heads, key_dim]
    value_pool: torch.Tensor,  # [slots, kv_heads, value_dim]
    table: NodeTable,
    *,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of every packed query token over its row's path, [tokens, heads, value_dim] in the type of `query`.

    Follows the contract in `NodeTable` word for word and uses no trick of the kernel: each row's keys are gathered to
    a dense list by a loop over nodes and tokens, and each head's softmax is computed in fp32. A token that sees no key
    gets zeros. Slow on purpose.
    """
    group = query.shape[1] // key_pool.shape[1]
    out = torch.zeros((*query.shape[:2], value_pool.shape[2]), dtype=torch.float32, device=query.device)
    starts, positions = table.query_start.tolist(), table.query_position.tolist()
    for row in range(table.num_rows):
        slots, key_positions = row_keys(table, row, block_size)
        keys, values = key_pool[slots].float(), value_pool[slots].float()
        key_position = torch.tensor(key_positions, dtype=torch.int64, device=query.device)
        for token in range(starts[row], starts[row + 1]):
            position = positions[row] + token - starts[row]
            visible = key_position <= position
            if sliding_window is not None:
                visible &= key_position > position - sliding_window
            if not visible.any():
                continue
            for head in range(query.shape[1]):
                scores = keys[visible, head // group] @ query[token, head].float() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[token, head] = torch.softmax(scores, dim=0) @ values[visible, head // group]
    return out.to(query.dtype)


def row_keys(table: NodeTable, row: int, block_size: int) -> tuple[list[int], list[int]]:
    """Slots and absolute positions of all keys on the path of `row`, in order of position."""
    slots, positions = [], []
    for node in table.path_nodes[table.path_start[row] : table.path_start[row + 1]].tolist():
        blocks = table.blocks[table.node_block_start[node] : table.node_block_start[node + 1]].tolist()
        for token in range(int(table.node_len[node])):
            place = int(table.node_offset[node]) + token
            slots.append(blocks[place // block_size] * block_size + place % block_size)
            positions.append(int(table.node_position[node]) + token)
    return slots, positions
