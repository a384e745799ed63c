"""The KV pool of the C++ kernels: where a slot's keys and values lie, and how they are written.

Limits: float32 or bfloat16; any head dimensions and numbers of heads. pool.h says why the layout is what it is.
"""

from __future__ import annotations

import ctypes

import torch

from .library import load

CHUNK = 16
"""Slots that lie together, as pool.h has it."""

DTYPES = (torch.float32, torch.bfloat16)

Shape = tuple[int, ...]


class WriteCall(ctypes.Structure):
    """`WriteCall` of calls.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("key_pool", "value_pool", "key", "value", "slots")),
        *((name, ctypes.c_int64 * 2) for name in ("key_strides", "value_strides")),
        *((name, ctypes.c_int64) for name in ("tokens", "kv_heads", "key_dim", "value_dim")),
        *((name, ctypes.c_int64) for name in ("is_bf16", "threads")),
    ]


def pool_shapes(num_slots: int, kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> tuple[Shape, Shape]:
    """The shapes of a layer's pools of keys and of values, for `num_slots` slots and up to 31 more.

    Keys are [chunks, kv_heads, words of a key, CHUNK, numbers of a word], values [chunks, kv_heads, words of CHUNK
    slots, value_dim, numbers of a word]. A pool must be zero before its first use.

    Raises UnavailableError where there are no C++ kernels.
    """
    numbers = load().llmsql_numbers_per_word(dtype == torch.bfloat16)
    chunks = -(-num_slots // CHUNK)
    return (
        (chunks, kv_heads, -(-key_dim // numbers), CHUNK, numbers),
        (chunks + 1, kv_heads, CHUNK // numbers, value_dim, numbers),
    )


def write_kv(
    key: torch.Tensor,  # [tokens, kv_heads, key_dim], its last dimension contiguous
    value: torch.Tensor,  # [tokens, kv_heads, value_dim], its last dimension contiguous
    key_pool: torch.Tensor,  # of `pool_shapes`
    value_pool: torch.Tensor,  # of `pool_shapes`
    slots: torch.Tensor,  # [tokens] int64; -1: not written
) -> None:
    """Store keys and values in their slots. Raises UnavailableError where there are no C++ kernels."""
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    load().llmsql_write_kv(ctypes.byref(write_call(key, value, key_pool, value_pool, slots)))


def check_pools(key_pool: torch.Tensor, value_pool: torch.Tensor, kv_heads: int, key_dim: int, value_dim: int) -> None:
    """Assert that the pools have shapes of `pool_shapes`."""
    numbers = key_pool.shape[-1]
    assert key_pool.shape[1:4] == (kv_heads, -(-key_dim // numbers), CHUNK), "pools of `pool_shapes`"
    expected = (len(key_pool) + 1, kv_heads, CHUNK // numbers, value_dim, numbers)
    assert value_pool.shape == expected, "pools of `pool_shapes`"
    assert key_pool.is_contiguous(), "contiguous pools"
    assert value_pool.is_contiguous(), "contiguous pools"


def write_call(
    key: torch.Tensor, value: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, slots: torch.Tensor
) -> WriteCall:
    """The arguments of `write_kv`, checked, as the kernels take them."""
    (tokens, kv_heads, key_dim), value_dim = key.shape, value.shape[2]
    assert key.dtype in DTYPES, f"float32 or bfloat16, not {key.dtype}"
    assert key.dtype == value.dtype == key_pool.dtype == value_pool.dtype, "tensors of one type"
    assert key.stride(2) == value.stride(2) == 1, "heads must be contiguous"
    assert slots.dtype == torch.int64, "slots in int64"
    assert slots.is_contiguous(), "contiguous slots"
    check_pools(key_pool, value_pool, kv_heads, key_dim, value_dim)
    return WriteCall(
        *(tensor.data_ptr() for tensor in (key_pool, value_pool, key, value, slots)),
        key.stride()[:2],
        value.stride()[:2],
        tokens,
        kv_heads,
        key_dim,
        value_dim,
        key.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
