"""The paged KV pool on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class KVCache:
    """Keys and values of every layer, by slot; which slot holds what is the tree's business."""

    def __init__(
        self, shapes: Sequence[LayerShape], num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        def pool(*shape: int) -> torch.Tensor:
            if device.type != "cpu":
                return torch.zeros(shape, dtype=dtype, device=device)
            size = math.prod(shape) * dtype.itemsize  # numpy's zeros are not touched: pages come with their first use
            return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)

        self.keys = [pool(num_slots, shape.kv_heads, shape.key_dim) for shape in shapes]
        self.values = [pool(num_slots, shape.kv_heads, shape.value_dim) for shape in shapes]

    def write(
        self,
        layer: int,
        slots: torch.Tensor,  # [tokens] int64
        key: torch.Tensor,  # [tokens, kv_heads, key_dim]
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    ) -> None:
        """Store the step's keys and values of one layer."""
        write_slots(key, value, self.keys[layer], self.values[layer], slots)


def write_slots(
    key: torch.Tensor,  # [tokens, kv_heads, key_dim]
    value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    key_pool: torch.Tensor,  # [num_slots, kv_heads, key_dim]
    value_pool: torch.Tensor,  # [num_slots, kv_heads, value_dim]
    slots: torch.Tensor,  # [tokens] int64
) -> None:
    """Store keys and values in their slots, in the type of the pools."""
    key_pool.index_copy_(0, slots, key.to(key_pool.dtype))
    value_pool.index_copy_(0, slots, value.to(value_pool.dtype))
