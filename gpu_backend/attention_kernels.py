"""What `KernelAttention` runs on: the attention kernels of one kind of device, and what they cost there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llmsql.kernels.work_list import TileLimits

from .cascade import Costs
from .kv_cache import LayerShape, PoolShapes, slots_first

LAUNCH_BYTES = 8 * 2**20
"""What two more launches cost on a GPU, as bytes that could be read meanwhile: some microseconds. An estimate."""
PROGRAM_KEYS = 64
"""What a group's own programs cost on a GPU, as keys that could be read meanwhile: one tile. An estimate."""
NATIVE_LANES = 96
"""Query tokens times the heads that share a KV head in one item of the C++ kernel, where a head has no more: its keys
are packed once for all of them, and their sums stay in the processor's cache."""


@dataclass(frozen=True)
class AttentionKernels:
    """The kernels of one kind."""

    name: str
    paged_attention: Callable[..., torch.Tensor]
    write_kv: Callable[..., None]
    pool_shapes: PoolShapes
    tile_limits: Callable[..., TileLimits]
    """Of `key_dim`, `value_dim`, `group` and `dtype`."""
    costs: Callable[..., Costs]
    """Of `heads`, `kv_heads`, `key_dim`, `value_dim` and `itemsize`."""
    num_processors: Callable[[torch.device], int]
    """How many items run side by side."""


def attention_kernels(name: str) -> AttentionKernels:
    """Those called "triton", which are loaded with it, or "native"."""
    if name == "native":
        from llmsql.kernels.native.attention import paged_attention as native_attention
        from llmsql.kernels.native.pool import write_kv as native_write

        return AttentionKernels(
            name,
            native_attention,
            native_write,
            _native_pools,
            _native_limits,
            native_costs,
            lambda device: torch.get_num_threads(),
        )
    assert name == "triton", f"there are no attention kernels called {name}"
    from llmsql.kernels import paged_attention, write_kv
    from llmsql.kernels.attention_launch import tile_limits

    return AttentionKernels(name, paged_attention, write_kv, slots_first, tile_limits, gpu_costs, num_processors)


def gpu_costs(*, heads: int, kv_heads: int, key_dim: int, value_dim: int, itemsize: int) -> Costs:
    """The costs of a layer on a GPU, in bytes moved; `itemsize` is the bytes of one number in the KV pool."""
    kv_bytes = kv_heads * (key_dim + value_dim) * itemsize
    part_bytes = heads * value_dim * 4
    return Costs(
        product=LAUNCH_BYTES,
        block=PROGRAM_KEYS * kv_bytes,
        merge=2 * part_bytes,  # written and read again
        read=kv_bytes,
        gather=0,
    )


def native_costs(*, heads: int, kv_heads: int, key_dim: int, value_dim: int, itemsize: int) -> Costs:
    """The costs of a layer in the C++ kernel, in nanoseconds of one core: what does not grow with the lanes."""
    return Costs(
        product=0,
        block=0,
        merge=heads * value_dim * MERGE_NS[itemsize],
        read=kv_heads * (key_dim + value_dim) * READ_NS[itemsize],
        gather=0,
    )


# Fitted to decode steps as those of cascade.py, by `python benchmarks/attention.py --kernels native`; by the bytes of a
# number. So sharing pays from some 80 tokens on in fp32, from some 200 in bf16.
MERGE_NS = {4: 2.4, 2: 1.45}  # a number of the output: a tile that is less full, a part that is written and read again
READ_NS = {4: 0.06, 2: 0.015}  # a number of a key or value


def _native_pools(num_slots: int, shape: LayerShape, dtype: torch.dtype) -> tuple[Sequence[int], Sequence[int]]:
    from llmsql.kernels.native.pool import pool_shapes

    return pool_shapes(num_slots, shape.kv_heads, shape.key_dim, shape.value_dim, dtype)


def _native_limits(*, key_dim: int, value_dim: int, group: int, dtype: torch.dtype) -> TileLimits:
    lanes = max(NATIVE_LANES, group)
    return TileLimits(lanes, lanes)


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for the interpreter, which runs one program after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
