"""Paged attention over tree paths: the call the engine makes on CUDA, its launch configuration and its limits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .node_table import NodeTable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_GROUP = 128  # query heads per KV head; they are folded into the rows of one tile


def paged_attention(
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key_pool: torch.Tensor,  # [slots, kv_heads, head_dim]
    value_pool: torch.Tensor,  # [slots, kv_heads, head_dim]
    table: NodeTable,
    *,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of every packed query token over the keys on its row's path, [tokens, heads, head_dim].

    One launch serves prefill chunks and decode tokens together; nothing is read back from the device. A token that
    sees no key gets zeros. `sliding_window` counts the token itself; `softcap` is applied to the scaled scores before
    masking. Query heads `h * heads / kv_heads` and following share KV head `h`.

    Raises ValueError for shapes or types outside the limits of this module, RuntimeError where the tensors are not on
    a CUDA device, and ModuleNotFoundError where triton is not installed.
    """
    _check_arguments(query, key_pool, value_pool, table, block_size, sliding_window, softcap)
    kernel, interpreted = _load_kernel()
    if not interpreted and query.device.type != "cuda":
        raise RuntimeError(
            f"paged_attention runs on CUDA tensors, these are on {query.device}. "
            "On other devices use the engine's torch attention, or paged_attention_reference in tests."
        )
    tokens, heads, head_dim = query.shape
    kv_heads = key_pool.shape[1]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if tokens == 0 or table.num_rows == 0:
        return out.zero_()
    launch = launch_configuration(
        head_dim=head_dim,
        group=heads // kv_heads,
        dtype=query.dtype,
        tokens_per_row=tokens / table.num_rows,
        block_size=block_size,
        has_window=sliding_window is not None,
        has_softcap=softcap is not None,
        interpreted=interpreted,
    )
    grid = (tokens // launch.constants["BLOCK_Q"] + table.num_rows, kv_heads)  # an upper bound from shapes alone
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        kernel[grid](
            out,
            query,
            key_pool,
            value_pool,
            table.node_block_start,
            table.blocks,
            table.node_offset,
            table.node_len,
            table.node_position,
            table.path_start,
            table.path_nodes,
            table.query_start,
            table.query_position,
            table.num_rows,
            scale if softcap is None else scale / softcap,
            1.0 if softcap is None else softcap,
            0 if sliding_window is None else sliding_window,
            out.stride(0),
            out.stride(1),
            query.stride(0),
            query.stride(1),
            key_pool.stride(0),
            key_pool.stride(1),
            value_pool.stride(0),
            value_pool.stride(1),
            **launch.constants,
            **launch.options,
        )
    return out


@dataclass(frozen=True)
class LaunchConfiguration:
    """What is fixed when the kernel is compiled."""

    constants: dict[str, Any]  # its constexpr arguments
    options: dict[str, Any]  # compiler options: warps per program, pipeline stages


def launch_configuration(
    *,
    head_dim: int,
    group: int,  # query heads per KV head
    dtype: torch.dtype,
    tokens_per_row: float,
    block_size: int,
    has_window: bool = False,
    has_softcap: bool = False,
    interpreted: bool = False,
) -> LaunchConfiguration:
    """The configuration for a batch, from what the host knows without asking the device.

    Batches of short rows (decode) take the smallest tile that a tensor core accepts, 16 rows; batches of long rows
    (prefill) take 64 or 128 in half precision. Loads of the next tile overlap the work on this one where both fit in
    99 KiB of shared memory, which cards of compute capability 8.6, 8.9 and 12.0 have (data-centre cards have more), so
    that every card runs the same configurations. Needs triton for the name of the compute type.
    """
    import triton.language as tl

    padded_dim = max(16, _next_power_of_two(head_dim))
    smallest = max(16, _next_power_of_two(group))
    if dtype == torch.float32:  # no tensor core in full precision: larger tiles only spill registers
        largest, tile = smallest, 32 if padded_dim <= 128 else 16
    elif padded_dim <= 128:
        largest, tile = max(smallest, 128), 64
    else:
        largest, tile = max(smallest, 64), 32
    block_m = min(max(smallest, _next_power_of_two(int(tokens_per_row * group))), largest)
    row_bytes = padded_dim * dtype.itemsize
    stages = 2 if (block_m + 2 * 2 * tile) * row_bytes <= 96 * 1024 else 1  # the query tile, keys and values twice
    # The interpreter computes wrong results in bf16 without saying so; there the operands are widened.
    compute = tl.float32 if interpreted and dtype == torch.bfloat16 else getattr(tl, str(dtype).split(".")[1])
    constants = {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": padded_dim,
        "GROUP": group,
        "BLOCK_SIZE": block_size,
        "BLOCK_Q": block_m // group,
        "BLOCK_M": block_m,
        "TILE": tile,
        "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap,
        "COMPUTE": compute,
    }
    warps = 8 if block_m >= 128 or block_m * padded_dim >= 128 * 128 else 4
    # Fusion is named because triton 3.9 warns where it is left to the default, which changes in 3.10.
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return LaunchConfiguration(constants, options)


def _next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _load_kernel() -> tuple[Any, bool]:
    """The kernel and whether it runs in Triton's interpreter (TRITON_INTERPRET=1 when triton was first imported)."""
    try:
        import triton
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "paged_attention needs triton, which is not installed (it exists for Linux with an NVIDIA or AMD GPU): "
            "`pip install triton`, or run the engine with device='cpu', which needs no triton."
        ) from error
    from .attention_kernel import paged_attention_kernel

    return paged_attention_kernel, not isinstance(paged_attention_kernel, triton.JITFunction)


def _check_arguments(
    query: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    table: NodeTable,
    block_size: int,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    if query.dim() != 3 or key_pool.dim() != 3 or key_pool.shape != value_pool.shape:
        raise ValueError(
            "paged_attention takes query [tokens, heads, head_dim] and pools [slots, kv_heads, head_dim] of one shape, "
            f"not {tuple(query.shape)}, {tuple(key_pool.shape)} and {tuple(value_pool.shape)}"
        )
    (_, heads, head_dim), (slots, kv_heads, pool_dim) = query.shape, key_pool.shape
    if head_dim != pool_dim or not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"head_dim is {head_dim} in the query and {pool_dim} in the pool: "
            f"they must be equal and at most {MAX_HEAD_DIM}"
        )
    if kv_heads == 0 or heads % kv_heads or not 1 <= heads // kv_heads <= MAX_GROUP:
        raise ValueError(f"{heads} heads over {kv_heads} KV heads: must be a multiple of 1 to {MAX_GROUP}")
    if query.dtype not in DTYPES or not query.dtype == key_pool.dtype == value_pool.dtype:
        raise ValueError(
            "query and pools must all be float16, all bfloat16 or all float32, "
            f"not {query.dtype}, {key_pool.dtype} and {value_pool.dtype}"
        )
    if {query.stride(2), key_pool.stride(2), value_pool.stride(2)} != {1} and head_dim > 1:
        raise ValueError("the last dimension of query and pools must be contiguous (stride 1)")
    if not query.device == key_pool.device == value_pool.device == table.blocks.device:
        raise ValueError(
            f"query is on {query.device}, the pools on {key_pool.device} and {value_pool.device}, "
            f"the node table on {table.blocks.device}: move them to one device"
        )
    if block_size < 1 or slots % block_size:
        raise ValueError(f"a pool of {slots} slots is not a whole number of blocks of {block_size}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}: it counts the token itself and must be at least 1")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}: it must be positive")
