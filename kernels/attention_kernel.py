"""The paged attention kernel in Triton: prefill chunks and decode tokens in one launch, keys gathered along tree paths.

The softmax is computed online in fp32 (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022, section 3.1). The
heads that share a KV head are folded into the rows of one tile, so keys and values are read once per KV head.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def paged_attention_kernel(
    out_pointer,  # [tokens, heads, head_dim]
    query_pointer,  # [tokens, heads, head_dim]
    key_pointer,  # [slots, kv_heads, head_dim]
    value_pointer,  # [slots, kv_heads, head_dim]
    node_block_start,  # the tensors of NodeTable
    blocks,
    node_offset,
    node_len,
    node_position,
    path_start,
    path_nodes,
    query_start,
    query_position,
    num_rows,
    score_scale,  # scale, or scale / softcap
    score_cap,  # softcap
    window,  # sliding window in tokens
    out_token_stride,
    out_head_stride,
    query_token_stride,
    query_head_stride,
    key_slot_stride,
    key_head_stride,
    value_slot_stride,
    value_head_stride,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,  # next power of two
    GROUP: tl.constexpr,  # query heads per KV head
    BLOCK_SIZE: tl.constexpr,  # slots per block of the pool
    BLOCK_Q: tl.constexpr,  # query tokens per program
    BLOCK_M: tl.constexpr,  # rows of the tile, >= BLOCK_Q * GROUP
    TILE: tl.constexpr,  # keys per step
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    COMPUTE: tl.constexpr,  # type of the operands of both matrix products
):
    """A program: BLOCK_Q query tokens of one row, the heads of one KV head; grid (query blocks, kv_heads)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    query_block = tl.program_id(0)
    kv_head = tl.program_id(1)

    row = _row_of_block(query_start, query_block, num_rows, BLOCK_Q)
    row_begin = tl.load(query_start + row)
    row_len = tl.load(query_start + row + 1) - row_begin
    first = (query_block - (row_begin // BLOCK_Q + row)) * BLOCK_Q  # first query of this block within its row
    if first >= row_len:
        return  # the grid is an upper bound

    lane = tl.arange(0, BLOCK_M)
    query_index = first + lane // GROUP
    lane_is_query = (lane < BLOCK_Q * GROUP) & (query_index < row_len)
    head = kv_head * GROUP + lane % GROUP
    token = (row_begin + query_index).to(tl.int64)
    dim = tl.arange(0, PADDED_DIM)
    query_mask = lane_is_query[:, None] & (dim < HEAD_DIM)[None, :]
    query = tl.load(
        query_pointer + token[:, None] * query_token_stride + head[:, None] * query_head_stride + dim[None, :],
        mask=query_mask,
        other=0.0,
    ).to(COMPUTE)

    position = tl.load(query_position + row) + query_index  # [BLOCK_M]
    first_position = tl.load(query_position + row) + first
    last_position = tl.load(query_position + row) + tl.minimum(first + BLOCK_Q, row_len) - 1
    lowest_key = 0  # no lane of this block sees a key before it
    if HAS_WINDOW:
        lowest_key = tl.maximum(first_position - window + 1, 0)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)  # running maximum of the scores, in powers of two
    total = tl.zeros([BLOCK_M], tl.float32)  # running sum of the weights
    gathered = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)  # running weighted sum of the values

    for step in range(tl.load(path_start + row), tl.load(path_start + row + 1)):
        node = tl.load(path_nodes + step)
        node_begin = tl.load(node_position + node)
        place = tl.load(node_offset + node)
        node_blocks = blocks + tl.load(node_block_start + node)
        # Keys [low, high) of this node can be seen by some lane; the range is empty for nodes outside all bounds.
        high = tl.minimum(tl.load(node_len + node), last_position - node_begin + 1)
        low = tl.maximum(lowest_key - node_begin, 0)
        for tile in range(low, high, TILE):
            key_index = tile + tl.arange(0, TILE)
            in_node = key_index < high
            slot_in_node = place + key_index
            block = tl.load(node_blocks + slot_in_node // BLOCK_SIZE, mask=in_node, other=0)
            slot = block.to(tl.int64) * BLOCK_SIZE + slot_in_node % BLOCK_SIZE
            key_mask = in_node[:, None] & (dim < HEAD_DIM)[None, :]
            key = tl.load(
                key_pointer + slot[:, None] * key_slot_stride + kv_head * key_head_stride + dim[None, :],
                mask=key_mask,
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
                value_pointer + slot[:, None] * value_slot_stride + kv_head * value_head_stride + dim[None, :],
                mask=key_mask,
                other=0.0,
            ).to(COMPUTE)
            gathered = gathered * keep[:, None]
            gathered = tl.dot(weight.to(COMPUTE), value, gathered, input_precision="ieee")
            best = new_best

    result = gathered / tl.where(total == 0.0, 1.0, total)[:, None]  # zeros where no key was seen
    tl.store(
        out_pointer + token[:, None] * out_token_stride + head[:, None] * out_head_stride + dim[None, :],
        result.to(out_pointer.dtype.element_ty),
        mask=query_mask,
    )


@triton.jit
def _row_of_block(query_start, query_block, num_rows, BLOCK_Q: tl.constexpr):
    """The last row whose first query block is not after `query_block`.

    Row r is given the blocks from `query_start[r] // BLOCK_Q + r` on, which leaves room for one partly filled block per
    row. So the grid is known from shapes alone, and no work list has to be made on the host or copied to the device.
    """
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // BLOCK_Q + middle <= query_block:
            low = middle
        else:
            high = middle
    return low
