"""Rotary positions on queries and keys, and the KV write, in one launch (Su et al. 2021, in the half-split form).

Dimension i of a head turns with dimension i + head_dim / 2. Limits: float16, bfloat16 or float32, even head dimensions
up to 256, the last dimensions contiguous; any strides otherwise, such as views of one merged projection.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch

from .language import FUSION, check_device, jit, next_power_of_two, on_device, tl


def rotary_and_write(
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key: torch.Tensor,  # [tokens, kv_heads, head_dim]
    value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    cos: torch.Tensor,  # [positions, head_dim // 2] contiguous
    sin: torch.Tensor,  # [positions, head_dim // 2] contiguous
    positions: torch.Tensor,  # [tokens] int32 or int64, rows of cos and sin
    key_pool: torch.Tensor,  # [slots, kv_heads, head_dim]
    value_pool: torch.Tensor,  # [slots, kv_heads, value_dim]
    slots: torch.Tensor,  # [tokens] int32 or int64; -1: not written
) -> torch.Tensor:
    """The rotated query, contiguous; the rotated key and the value are stored in their slots.

    Computed in fp32 from cos and sin rounded to the query's type, which is what transformers multiplies with.

    Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError without triton.
    """
    check_device("rotary_and_write", query)
    tokens, heads, head_dim = query.shape
    _, kv_heads, value_dim = value.shape
    assert 2 * cos.shape[1] == 2 * sin.shape[1] == head_dim, f"heads of {head_dim} turn by {cos.shape[1]} angles"
    assert all(angles.is_contiguous() for angles in (cos, sin)), "cos and sin must be contiguous"
    assert all(t.stride(2) == 1 for t in (query, key, value, key_pool, value_pool)), "heads must be contiguous"
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if tokens == 0:
        return out
    with on_device(query):
        rotary_and_write_kernel[(tokens,)](
            out,
            query,
            key,
            value,
            cos,
            sin,
            positions,
            key_pool,
            value_pool,
            slots,
            *(stride for tensor in (query, key, value, key_pool, value_pool) for stride in tensor.stride()[:2]),
            **launch_configuration(heads, kv_heads, head_dim, value_dim),
        )
    return out


def launch_configuration(heads: int, kv_heads: int, head_dim: int, value_dim: int) -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    half = head_dim // 2
    blocks = {
        "QUERY_BLOCK": next_power_of_two(heads * half),
        "KEY_BLOCK": next_power_of_two(kv_heads * half),
        "VALUE_BLOCK": next_power_of_two(kv_heads * value_dim),
    }
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HALF": half,
        "VALUE_DIM": value_dim,
        **blocks,
        "num_warps": max(1, min(8, max(blocks.values()) // 256)),
        "num_stages": 1,
        **FUSION,
    }


@jit
def rotary_and_write_kernel(
    out_pointer,  # [tokens, HEADS, 2 * HALF] contiguous
    query_pointer,
    key_pointer,
    value_pointer,
    cos_pointer,
    sin_pointer,
    positions,
    key_pool_pointer,
    value_pool_pointer,
    slots,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_slot_stride,
    key_pool_head_stride,
    value_slot_stride,
    value_pool_head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
):
    """A program: one token; grid (tokens,)."""
    token = tl.program_id(0).to(tl.int64)
    angle = tl.load(positions + token).to(tl.int64) * HALF
    index = tl.arange(0, QUERY_BLOCK)
    mask = index < HEADS * HALF
    source = query_pointer + token * query_token_stride + index // HALF * query_head_stride + index % HALF
    first, second = _turned(source, cos_pointer + angle + index % HALF, sin_pointer + angle + index % HALF, mask, HALF)
    target = out_pointer + (token * HEADS + index // HALF) * (2 * HALF) + index % HALF
    tl.store(target, first.to(out_pointer.dtype.element_ty), mask=mask)
    tl.store(target + HALF, second.to(out_pointer.dtype.element_ty), mask=mask)

    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    index = tl.arange(0, KEY_BLOCK)
    mask = index < KV_HEADS * HALF
    source = key_pointer + token * key_token_stride + index // HALF * key_head_stride + index % HALF
    first, second = _turned(source, cos_pointer + angle + index % HALF, sin_pointer + angle + index % HALF, mask, HALF)
    target = key_pool_pointer + slot * key_slot_stride + index // HALF * key_pool_head_stride + index % HALF
    tl.store(target, first.to(key_pool_pointer.dtype.element_ty), mask=mask)
    tl.store(target + HALF, second.to(key_pool_pointer.dtype.element_ty), mask=mask)

    index = tl.arange(0, VALUE_BLOCK)
    mask = index < KV_HEADS * VALUE_DIM
    head, dim = index // VALUE_DIM, index % VALUE_DIM
    value = tl.load(value_pointer + token * value_token_stride + head * value_head_stride + dim, mask=mask)
    target = value_pool_pointer + slot * value_slot_stride + head * value_pool_head_stride + dim
    tl.store(target, value.to(value_pool_pointer.dtype.element_ty), mask=mask)


@jit
def _turned(source, cos_pointer, sin_pointer, mask, HALF: tl.constexpr):
    """Both halves of heads, turned by their angles, in fp32."""
    first, second = tl.load(source, mask=mask, other=0.0), tl.load(source + HALF, mask=mask, other=0.0)
    cos = tl.load(cos_pointer, mask=mask, other=0.0).to(first.dtype).to(tl.float32)
    sin = tl.load(sin_pointer, mask=mask, other=0.0).to(first.dtype).to(tl.float32)
    first, second = first.to(tl.float32), second.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


def rotary_and_write_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """The same by complex multiplication, in fp64 and token by token."""
    cos, sin = (angles.to(query.dtype).double()[positions.long(), None] for angles in (cos, sin))
    turn = torch.complex(cos, sin)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.double().chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    keys = rotated(key)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key_pool[slot] = keys[token].to(key_pool.dtype)
            value_pool[slot] = value[token].to(value_pool.dtype)
    return rotated(query).to(query.dtype)
