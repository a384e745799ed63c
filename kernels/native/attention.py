"""Paged attention over a work list on the CPU: the launcher of attention.cpp.

Limits: float32 or bfloat16, all the same; any head dimensions and any number of query heads per KV head; pools as
pool.py has them. The torch reference is `paged_attention_reference`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .library import load
from .pool import DTYPES, check_pools, pool_shapes, write_kv

if TYPE_CHECKING:
    from ..node_table import NodeTable
    from ..work_list import WorkList

_POINTERS_OF_WORK = ("items", "entry_token", "entry_position", "entry_part", "merge_token", "merge_start")
_POINTERS_OF_TABLE = ("node_block_start", "blocks", "node_offset", "node_len", "node_position", "path_nodes")


class AttentionCall(ctypes.Structure):
    """`AttentionCall` of calls.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "parts", "lse", "query", "keys", "values")),
        *((name, ctypes.c_void_p) for name in (*_POINTERS_OF_WORK, *_POINTERS_OF_TABLE)),
        *((name, ctypes.c_int64) for name in ("query_token_stride", "query_head_stride", "num_items", "num_merged")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "key_dim", "value_dim", "block_size", "window")),
        *((name, ctypes.c_int64) for name in ("is_bf16", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    ]


def paged_attention(
    query: torch.Tensor,  # [tokens, heads, key_dim], its last dimension contiguous
    key_pool: torch.Tensor,  # of `pool.pool_shapes`
    value_pool: torch.Tensor,  # of `pool.pool_shapes`
    table: NodeTable,
    work: WorkList,
    *,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of every packed query token over the keys on its row's path, [tokens, heads, value_dim].

    A token that sees no key gets zeros; one that `work` does not name is left undefined. See the Triton kernel of the
    same name. Raises UnavailableError where there are no C++ kernels.
    """
    tokens, heads, key_dim = query.shape
    kv_heads, value_dim = key_pool.shape[1], value_pool.shape[3]
    assert query.dtype in DTYPES, f"float32 or bfloat16, not {query.dtype}"
    assert query.dtype == key_pool.dtype == value_pool.dtype, "query and pools of one type"
    assert query.stride(2) == 1, "contiguous heads"
    check_pools(key_pool, value_pool, kv_heads, key_dim, value_dim)
    assert heads % kv_heads == 0, f"{heads} heads over {kv_heads} KV heads"
    out = query.new_empty((tokens, heads, value_dim))
    parts = torch.empty((work.num_parts, heads, value_dim))
    lse = torch.empty((work.num_parts, heads))
    call = attention_call(
        (out, parts, lse, query, key_pool, value_pool),
        table,
        work,
        kv_heads=kv_heads,
        value_dim=value_dim,
        block_size=block_size,
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    load().llmsql_paged_attention(ctypes.byref(call))
    return out


def attention_call(
    tensors: Sequence[torch.Tensor],  # out, parts, lse, query, key_pool and value_pool
    table: NodeTable,
    work: WorkList,
    *,
    kv_heads: int,
    value_dim: int,
    block_size: int,
    scale: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> AttentionCall:
    """The arguments of `paged_attention` as the kernel takes them."""
    query = tensors[3]
    return AttentionCall(
        *(tensor.data_ptr() for tensor in tensors),
        *(getattr(work, name).data_ptr() for name in _POINTERS_OF_WORK),
        *(getattr(table, name).data_ptr() for name in _POINTERS_OF_TABLE),
        query.stride(0),
        query.stride(1),
        len(work.items),
        len(work.merge_token),
        query.shape[1],
        kv_heads,
        query.shape[2],
        value_dim,
        block_size,
        sliding_window or 0,
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
        scale,
        softcap or 0.0,
    )


def agrees_with_torch() -> bool:
    """Whether the kernel, as it was compiled here, gives what torch's softmax does: a few milliseconds.

    Raises UnavailableError where there are no C++ kernels.
    """
    from ..node_table import NodeTable
    from ..work_list import Launch, WorkList

    length, heads, kv_heads, dim = 150, 6, 2, 40
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.arange(count, dtype=torch.int32) for count in (2, length)]
    one, none = numbers[0][1:], numbers[0][:1]
    table = NodeTable(numbers[0] * length, numbers[1], none, one * length, none, numbers[0], none, numbers[0], none)
    items = torch.tensor([[0, 1, 0, 1, 0, length, 0, 0]], dtype=torch.int32)
    work = WorkList(items, none, one * (length - 1), -one, none[:0], none, (Launch(0, 1, heads),), 0)
    for dtype in DTYPES:
        query, keys, values = (
            torch.randn(count, width, dim, generator=generator).to(dtype)
            for count, width in ((1, heads), (length, kv_heads), (length, kv_heads))
        )
        pools = [torch.zeros(shape, dtype=dtype) for shape in pool_shapes(length, kv_heads, dim, dim, dtype)]
        write_kv(keys, values, pools[0], pools[1], torch.arange(length))
        found = paged_attention(query, pools[0], pools[1], table, work, block_size=1, scale=dim**-0.5, softcap=5.0)
        per_head = [tensor.double().repeat_interleave(heads // kv_heads, dim=1) for tensor in (keys, values)]
        scores = torch.einsum("qhd,khd->hqk", query.double(), per_head[0]) * dim**-0.5
        weights = (torch.tanh(scores / 5.0) * 5.0).softmax(-1)
        expected = torch.einsum("hqk,khd->qhd", weights, per_head[1])
        if not torch.allclose(found.double(), expected, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=0):
            return False
    return True
