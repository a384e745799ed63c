"""RMS norm, and rotary positions with the KV write, on the CPU: the launchers of operators.cpp.

Limits: float32 or bfloat16, all tensors of a call alike but the angles, which are float32. The torch references are
those of the Triton kernels of the same names.
"""

from __future__ import annotations

import ctypes

import torch

from .library import load
from .pool import DTYPES, WriteCall, write_call


class _NormCall(ctypes.Structure):
    """`NormCall` of calls.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "residual", "normed")),
        *((name, ctypes.c_int64) for name in ("outer", "inner", "size", "outer_stride", "inner_stride")),
        *((name, ctypes.c_int64) for name in ("offset", "is_bf16", "threads")),
        ("eps", ctypes.c_float),
    ]


class _RotaryCall(ctypes.Structure):
    """`RotaryCall` of calls.h."""

    _fields_ = [
        ("write", WriteCall),
        *((name, ctypes.c_void_p) for name in ("out", "query", "cos", "sin", "positions")),
        ("query_strides", ctypes.c_int64 * 2),
        ("heads", ctypes.c_int64),
    ]


def rms_norm(
    x: torch.Tensor,  # [tokens, size] or [tokens, heads, size], its last dimension contiguous
    weight: torch.Tensor,  # [size]
    eps: float,
    residual: torch.Tensor | None = None,  # as x, contiguous; overwritten by the sum
    *,
    offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(normed, total)`: total is `x + residual` rounded to their type (or x), normed its norm, contiguous.

    See the Triton kernel of the same name. Raises UnavailableError where there are no C++ kernels.
    """
    total = x if residual is None else residual
    assert x.dim() in (2, 3), f"rms_norm takes two or three dimensions, not {x.dim()}"
    assert x.dtype in DTYPES, f"float32 or bfloat16, not {x.dtype}"
    assert x.dtype == weight.dtype == total.dtype, "tensors of one type"
    assert x.stride(-1) == 1, "rows must be contiguous"
    assert weight.is_contiguous(), "the weight must be contiguous"
    assert residual is None or residual.is_contiguous(), "the residual must be contiguous"
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    call = _NormCall(
        x.data_ptr(),
        weight.data_ptr(),
        None if residual is None else residual.data_ptr(),
        normed.data_ptr(),
        x.shape[0],
        x.shape[1] if x.dim() == 3 else 1,
        x.shape[-1],
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        offset,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
        eps,
    )
    load().llmsql_rms_norm(ctypes.byref(call))
    return normed, total


def rotary_and_write(
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key: torch.Tensor,  # [tokens, kv_heads, head_dim]
    value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    cos: torch.Tensor,  # [positions, head_dim // 2] float32 contiguous
    sin: torch.Tensor,  # [positions, head_dim // 2] float32 contiguous
    positions: torch.Tensor,  # [tokens] int64, rows of cos and sin
    key_pool: torch.Tensor,  # of `pool.pool_shapes`
    value_pool: torch.Tensor,  # of `pool.pool_shapes`
    slots: torch.Tensor,  # [tokens] int64; -1: not written
) -> torch.Tensor:
    """The rotated query, contiguous; the rotated key and the value are stored in their slots.

    See the Triton kernel of the same name. Raises UnavailableError where there are no C++ kernels.
    """
    tokens, heads, head_dim = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if tokens == 0:
        return out
    assert query.dtype == key.dtype, "tensors of one type"
    assert query.stride(2) == 1, "heads must be contiguous"
    assert all(t.is_contiguous() for t in (cos, sin, positions)), "contiguous tables"
    assert cos.dtype == sin.dtype == torch.float32, "angles in float32"
    assert positions.dtype == torch.int64, "positions in int64"
    assert 2 * cos.shape[1] == 2 * sin.shape[1] == head_dim, f"heads of {head_dim} turn by {cos.shape[1]} angles"
    call = _RotaryCall(
        write_call(key, value, key_pool, value_pool, slots),
        *(t.data_ptr() for t in (out, query, cos, sin, positions)),
        query.stride()[:2],
        heads,
    )
    load().llmsql_rotary_and_write(ctypes.byref(call))
    return out
