"""The paged KV pool on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps per token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    def num_elements(self) -> int:
        """Numbers kept per token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class LayerAttention:
    """How one attention layer scores its keys."""

    scale: float
    window: int | None
    softcap: float | None


PoolShapes = Callable[[int, LayerShape, torch.dtype], tuple[Sequence[int], Sequence[int]]]
"""The shapes of a layer's pools of keys and of values for a number of slots."""


def slots_first(num_slots: int, shape: LayerShape, dtype: torch.dtype) -> tuple[Sequence[int], Sequence[int]]:
    """A slot's keys and values lie together: [num_slots, kv_heads, key_dim or value_dim]."""
    return (num_slots, shape.kv_heads, shape.key_dim), (num_slots, shape.kv_heads, shape.value_dim)


class KVCache:
    """Keys and values of every layer, by slot; which slot holds what is the tree's business."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        pool_shapes: PoolShapes = slots_first,
    ) -> None:
        """`pool_shapes` is that of the kernels which read the pool."""

        def pool(shape: Sequence[int]) -> torch.Tensor:
            if device.type != "cpu":
                return torch.zeros(shape, dtype=dtype, device=device)
            size = math.prod(shape) * dtype.itemsize  # numpy's zeros are not touched: pages come with their first use
            return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(*shape)

        self.shapes = shapes
        pools = [pool_shapes(num_slots, shape, dtype) for shape in shapes]
        self.keys = [pool(keys) for keys, _ in pools]
        self.values = [pool(values) for _, values in pools]

    def write(
        self,
        layer: int,
        slots: torch.Tensor,  # [tokens] int64
        key: torch.Tensor,  # [tokens, kv_heads, key_dim]
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    ) -> None:
        """Store the step's keys and values of one layer, in pools of `slots_first`."""
        self.keys[layer].index_copy_(0, slots, key.to(self.keys[layer].dtype))
        self.values[layer].index_copy_(0, slots, value.to(self.values[layer].dtype))
