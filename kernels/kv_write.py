"""KV write: the keys and values of a step's tokens, each to its slot of the pool.

Limits: any types that convert, last dimensions contiguous, up to 65,536 numbers per token. A token of slot -1 is
skipped, so that a batch may be padded.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch

from .language import FUSION, check_device, jit, next_power_of_two, on_device, tl


def write_kv(
    key: torch.Tensor,  # [tokens, kv_heads, key_dim]
    value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    key_pool: torch.Tensor,  # [slots, kv_heads, key_dim]
    value_pool: torch.Tensor,  # [slots, kv_heads, value_dim]
    slots: torch.Tensor,  # [tokens] int32 or int64; -1: skip
) -> None:
    """Store every token's key and value in its slot, in one launch.

    Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError without triton.
    """
    check_device("write_kv", key)
    tokens, kv_heads, key_dim = key.shape
    value_dim = value.shape[2]
    assert all(t.stride(2) == 1 for t in (key, value, key_pool, value_pool)), "write_kv takes contiguous heads"
    if tokens == 0:
        return
    with on_device(key):
        write_kv_kernel[(tokens,)](
            key,
            value,
            key_pool,
            value_pool,
            slots,
            *(stride for tensor in (key, value, key_pool, value_pool) for stride in tensor.stride()[:2]),
            **launch_configuration(kv_heads, key_dim, value_dim),
        )


def launch_configuration(kv_heads: int, key_dim: int, value_dim: int) -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    key_block, value_block = next_power_of_two(kv_heads * key_dim), next_power_of_two(kv_heads * value_dim)
    return {
        "KV_HEADS": kv_heads,
        "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim,
        "KEY_BLOCK": key_block,
        "VALUE_BLOCK": value_block,
        "num_warps": max(1, min(8, max(key_block, value_block) // 256)),
        "num_stages": 1,
        **FUSION,
    }


@jit
def write_kv_kernel(
    key_pointer,
    value_pointer,
    key_pool_pointer,
    value_pool_pointer,
    slots,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_slot_stride,
    key_pool_head_stride,
    value_slot_stride,
    value_pool_head_stride,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
):
    """A program: the key and value of one token; grid (tokens,)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    index = tl.arange(0, KEY_BLOCK)
    head, dim, mask = index // KEY_DIM, index % KEY_DIM, index < KV_HEADS * KEY_DIM
    key = tl.load(key_pointer + token * key_token_stride + head * key_head_stride + dim, mask=mask)
    target = key_pool_pointer + slot * key_slot_stride + head * key_pool_head_stride + dim
    tl.store(target, key.to(key_pool_pointer.dtype.element_ty), mask=mask)
    index = tl.arange(0, VALUE_BLOCK)
    head, dim, mask = index // VALUE_DIM, index % VALUE_DIM, index < KV_HEADS * VALUE_DIM
    value = tl.load(value_pointer + token * value_token_stride + head * value_head_stride + dim, mask=mask)
    target = value_pool_pointer + slot * value_slot_stride + head * value_pool_head_stride + dim
    tl.store(target, value.to(value_pool_pointer.dtype.element_ty), mask=mask)


def write_kv_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """The same, token by token."""
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key_pool[slot] = key[token].to(key_pool.dtype)
            value_pool[slot] = value[token].to(value_pool.dtype)
