"""Paged attention over a work list: prefill chunks, decode tokens, split keys and shared prefixes, in one kernel.

Keys and values lie in a pool by slot, gathered through the block lists of a `NodeTable`; a `WorkList` says which
program attends with which query tokens to which run of keys. Three uses differ only in the list:

- a block of one row's queries against the keys of its path (paged attention);
- the same, its keys cut among several programs where there would be too few (split-KV, "flash-decoding");
- the query tokens of all rows of a group against the nodes they share, read once for all of them (the prefix pass of a
  cascade; Hydragen, Juravsky et al. 2024; Ye et al., "Cascade Inference", 2024), and each row's own keys apart.

Where a token's keys are cut, each part gives a normalised result and its log-sum-exp in fp32, and `merge_parts` joins
them. The softmax is computed online in fp32 (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022, section
3.1). The heads that share a KV head are folded into the rows of one tile, so keys and values are read once for them.

Limits: float16, bfloat16 or float32, all the same; head dimensions of keys and values up to 256; up to 128 query heads
per KV head; any block size. The torch reference is `paged_attention_reference`.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .attention_launch import launch_configuration
from .language import check_device, jit, on_device, tl
from .merge import merge_parts

if TYPE_CHECKING:
    from .node_table import NodeTable
    from .work_list import WorkList

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_GROUP = 128  # query heads per KV head; they are folded into the rows of one tile


def paged_attention(
    query: torch.Tensor,  # [tokens, heads, key_dim]
    key_pool: torch.Tensor,  # [slots, kv_heads, key_dim]
    value_pool: torch.Tensor,  # [slots, kv_heads, value_dim]
    table: NodeTable,
    work: WorkList,
    *,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of every packed query token over the keys on its row's path, [tokens, heads, value_dim].

    Nothing is read back from the device. A token that sees no key gets zeros; one that `work` does not name is left
    undefined. `sliding_window` counts the token itself, and `work` must have been made with it; `softcap` is applied to
    the scaled scores before masking. Query heads `h * heads / kv_heads` and following share KV head `h`.

    Raises ValueError for shapes or types outside the limits of this module, RuntimeError where the tensors are not on
    a CUDA device, and ModuleNotFoundError where triton is not installed.
    """
    _check_arguments(query, key_pool, value_pool, table, work, block_size, sliding_window, softcap)
    check_device("paged_attention", query)
    tokens, heads, key_dim = query.shape
    _, kv_heads, value_dim = value_pool.shape
    out = query.new_empty((tokens, heads, value_dim))
    parts = query.new_empty((work.num_parts, heads, value_dim), dtype=torch.float32)
    lse = query.new_empty((work.num_parts, heads), dtype=torch.float32)
    with on_device(query):
        for launch in work.launches:
            made = launch_configuration(
                launch.block_m,
                key_dim=key_dim,
                value_dim=value_dim,
                group=heads // kv_heads,
                dtype=query.dtype,
                block_size=block_size,
                has_window=sliding_window is not None,
                has_softcap=softcap is not None,
                has_parts=work.num_parts > 0,
            )
            paged_attention_kernel[(launch.num_items, kv_heads)](
                out,
                parts,
                lse,
                query,
                key_pool,
                value_pool,
                work.items[launch.first_item :],
                work.entry_token,
                work.entry_position,
                work.entry_part,
                table.node_block_start,
                table.blocks,
                table.node_offset,
                table.node_len,
                table.node_position,
                table.path_nodes,
                scale if softcap is None else scale / softcap,
                1.0 if softcap is None else softcap,
                0 if sliding_window is None else sliding_window,
                heads,
                query.stride(0),
                query.stride(1),
                key_pool.stride(0),
                key_pool.stride(1),
                value_pool.stride(0),
                value_pool.stride(1),
                **made.constants,
                **made.options,
            )
        merge_parts(out, parts, lse, work.merge_token, work.merge_start)
    return out


@jit(do_not_specialize=["window", "num_heads"])
def paged_attention_kernel(
    out_pointer,  # [tokens, num_heads, VALUE_DIM] contiguous
    part_pointer,  # [parts, num_heads, VALUE_DIM] contiguous, fp32
    lse_pointer,  # [parts, num_heads] contiguous, fp32
    query_pointer,  # [tokens, num_heads, KEY_DIM]
    key_pointer,  # [slots, kv_heads, KEY_DIM]
    value_pointer,  # [slots, kv_heads, VALUE_DIM]
    items,  # the tensors of WorkList
    entry_token,
    entry_position,
    entry_part,
    node_block_start,  # the tensors of NodeTable
    blocks,
    node_offset,
    node_len,
    node_position,
    path_nodes,
    score_scale,  # scale, or scale / softcap
    score_cap,  # softcap
    window,  # sliding window in tokens
    num_heads,
    query_token_stride,
    query_head_stride,
    key_slot_stride,
    key_head_stride,
    value_slot_stride,
    value_head_stride,
    KEY_DIM: tl.constexpr,
    PADDED_KEY: tl.constexpr,  # next power of two
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per KV head
    BLOCK_SIZE: tl.constexpr,  # slots per block of the pool
    BLOCK_M: tl.constexpr,  # rows of the tile, at least an item's query tokens times GROUP
    TILE: tl.constexpr,  # keys per step
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_PARTS: tl.constexpr,
    COMPUTE: tl.constexpr,  # type of the operands of both matrix products
):
    """A program: one item of the work list and the query heads of one KV head; grid (items, kv_heads)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    ITEM_WIDTH: tl.constexpr = 8
    item = items + tl.program_id(0) * ITEM_WIDTH
    kv_head = tl.program_id(1)
    entry_begin = tl.load(item)
    num_entries = tl.load(item + 1)
    path_begin = tl.load(item + 2)
    path_end = tl.load(item + 3)
    key_begin = tl.load(item + 4)
    key_end = tl.load(item + 5)

    lane = tl.arange(0, BLOCK_M)
    is_query = lane < num_entries * GROUP
    entry = entry_begin + lane // GROUP
    token = tl.load(entry_token + entry, mask=is_query, other=0).to(tl.int64)
    position = tl.load(entry_position + entry, mask=is_query, other=0)
    head = kv_head * GROUP + lane % GROUP
    key_dim = tl.arange(0, PADDED_KEY)
    value_dim = tl.arange(0, PADDED_VALUE)
    query = tl.load(
        (query_pointer + token * query_token_stride + head * query_head_stride)[:, None] + key_dim[None, :],
        mask=is_query[:, None] & (key_dim < KEY_DIM)[None, :],
        other=0.0,
    ).to(COMPUTE)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)  # running maximum of the scores, in powers of two
    total = tl.full([BLOCK_M], 0.0, tl.float32)  # running sum of the weights
    gathered = tl.full([BLOCK_M, PADDED_VALUE], 0.0, tl.float32)  # running weighted sum of the values

    for step in range(path_begin, path_end):
        node = tl.load(path_nodes + step)
        node_begin = tl.load(node_position + node)
        place = tl.load(node_offset + node)
        node_blocks = blocks + tl.load(node_block_start + node)
        # Keys [low, high) of this node are the item's; the range is empty for nodes outside all bounds.
        low = tl.maximum(key_begin - node_begin, 0)
        high = tl.minimum(tl.load(node_len + node), key_end - node_begin)
        for tile in range(low, high, TILE):
            key_index = tile + tl.arange(0, TILE)
            in_node = key_index < high
            slot_in_node = place + key_index
            block = tl.load(node_blocks + slot_in_node // BLOCK_SIZE, mask=in_node, other=0)
            slot = block.to(tl.int64) * BLOCK_SIZE + slot_in_node % BLOCK_SIZE
            key = tl.load(
                (key_pointer + slot * key_slot_stride + kv_head * key_head_stride)[:, None] + key_dim[None, :],
                mask=in_node[:, None] & (key_dim < KEY_DIM)[None, :],
                other=0.0,
            ).to(COMPUTE)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * score_scale  # [BLOCK_M, TILE] fp32
            if HAS_SOFTCAP:
                # tanh with one exponential: goes to 1 and -1 where the symmetric form is inf / inf
                scores = score_cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E)) + 1.0))
            key_position = node_begin + key_index
            visible = in_node[None, :] & (key_position[None, :] <= position[:, None])
            if HAS_WINDOW:
                visible = visible & (key_position[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores * LOG2E, float("-inf"))

            new_best = tl.maximum(best, tl.max(scores, 1))
            shift = tl.where(new_best == float("-inf"), 0.0, new_best)  # a lane may have seen no key yet
            weight = tl.exp2(scores - shift[:, None])
            keep = tl.exp2(best - shift)
            total = total * keep + tl.sum(weight, 1)
            value = tl.load(
                (value_pointer + slot * value_slot_stride + kv_head * value_head_stride)[:, None] + value_dim[None, :],
                mask=in_node[:, None] & (value_dim < VALUE_DIM)[None, :],
                other=0.0,
            ).to(COMPUTE)
            gathered = gathered * keep[:, None]
            gathered = tl.dot(weight.to(COMPUTE), value, gathered, input_precision="ieee")
            best = new_best

    seen = tl.where(total == 0.0, 1.0, total)
    result = gathered / seen[:, None]  # zeros where no key was seen
    in_value = (value_dim < VALUE_DIM)[None, :]
    whole = is_query
    if HAS_PARTS:
        part = tl.load(entry_part + entry, mask=is_query, other=-1).to(tl.int64)
        whole = is_query & (part < 0)
        is_part = is_query & (part >= 0)
        row = part * num_heads + head
        tl.store(part_pointer + row[:, None] * VALUE_DIM + value_dim[None, :], result, mask=is_part[:, None] & in_value)
        lse = tl.where(total == 0.0, float("-inf"), best / LOG2E + tl.log(seen))
        tl.store(lse_pointer + row, lse, mask=is_part)
    row = token * num_heads + head
    tl.store(
        (out_pointer + row * VALUE_DIM)[:, None] + value_dim[None, :],
        result.to(out_pointer.dtype.element_ty),
        mask=whole[:, None] & in_value,
    )


def _check_arguments(
    query: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    table: NodeTable,
    work: WorkList,
    block_size: int,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    if query.dim() != 3 or key_pool.dim() != 3 or value_pool.dim() != 3 or key_pool.shape[:2] != value_pool.shape[:2]:
        raise ValueError(
            "paged_attention takes query [tokens, heads, key_dim] and pools [slots, kv_heads, key_dim] and [slots, "
            f"kv_heads, value_dim], not {tuple(query.shape)}, {tuple(key_pool.shape)} and {tuple(value_pool.shape)}"
        )
    (_, heads, key_dim), (slots, kv_heads, pool_dim) = query.shape, key_pool.shape
    if key_dim != pool_dim or not 1 <= key_dim <= MAX_HEAD_DIM or not 1 <= value_pool.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(
            f"the head dimension is {key_dim} in the query, {pool_dim} in the keys and {value_pool.shape[2]} in the "
            f"values: the first two must be equal, and all at most {MAX_HEAD_DIM}"
        )
    if kv_heads == 0 or heads % kv_heads or not 1 <= heads // kv_heads <= MAX_GROUP:
        raise ValueError(f"{heads} heads over {kv_heads} KV heads: must be a multiple of 1 to {MAX_GROUP}")
    if query.dtype not in DTYPES or not query.dtype == key_pool.dtype == value_pool.dtype:
        raise ValueError(
            "query and pools must all be float16, all bfloat16 or all float32, "
            f"not {query.dtype}, {key_pool.dtype} and {value_pool.dtype}"
        )
    if any(tensor.shape[2] > 1 and tensor.stride(2) != 1 for tensor in (query, key_pool, value_pool)):
        raise ValueError("the last dimension of query and pools must be contiguous (stride 1)")
    if not query.device == key_pool.device == value_pool.device == table.blocks.device == work.items.device:
        raise ValueError(
            f"query is on {query.device}, the pools on {key_pool.device} and {value_pool.device}, the node table on "
            f"{table.blocks.device}, the work list on {work.items.device}: move them to one device"
        )
    if block_size < 1 or slots % block_size:
        raise ValueError(f"a pool of {slots} slots is not a whole number of blocks of {block_size}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}: it counts the token itself and must be at least 1")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}: it must be positive")
