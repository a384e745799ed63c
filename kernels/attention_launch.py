"""Tiles, warps and stages of the attention kernel, chosen from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .language import FUSION, compute_type, next_power_of_two
from .work_list import TileLimits


def tile_limits(*, key_dim: int, value_dim: int, group: int, dtype: torch.dtype) -> TileLimits:
    """The range of tiles that a work list may ask for: from the 16 rows that a tensor core takes to 64 or 128."""
    smallest = max(16, next_power_of_two(group))
    if dtype == torch.float32:  # no tensor core in full precision: larger tiles only spill registers
        return TileLimits(smallest, smallest)
    return TileLimits(smallest, max(smallest, 128 if max(key_dim, value_dim) <= 128 else 64))


@dataclass(frozen=True)
class LaunchConfiguration:
    """What is fixed when the kernel is compiled."""

    constants: dict[str, Any]  # its constexpr arguments
    options: dict[str, Any]  # compiler options: warps per program, pipeline stages


@cache
def launch_configuration(
    block_m: int,
    *,
    key_dim: int,
    value_dim: int,
    group: int,  # query heads per KV head
    dtype: torch.dtype,
    block_size: int,
    has_window: bool = False,
    has_softcap: bool = False,
    has_parts: bool = False,
) -> LaunchConfiguration:
    """The configuration for tiles of `block_m` rows, a power of two between the `tile_limits`.

    Loads of the next keys overlap the work on these where both fit in 99 KiB of shared memory, which cards of compute
    capability 8.6, 8.9 and 12.0 have (data-centre cards have more), so that every card runs the same configurations.
    """
    padded_key, padded_value = (max(16, next_power_of_two(dim)) for dim in (key_dim, value_dim))
    widest = max(padded_key, padded_value)
    if dtype == torch.float32:
        tile = 32 if widest <= 128 else 16
    else:
        tile = 64 if widest <= 128 else 32
    shared = (block_m * padded_key + 2 * tile * (padded_key + padded_value)) * dtype.itemsize
    constants = {
        "KEY_DIM": key_dim,
        "PADDED_KEY": padded_key,
        "VALUE_DIM": value_dim,
        "PADDED_VALUE": padded_value,
        "GROUP": group,
        "BLOCK_SIZE": block_size,
        "BLOCK_M": block_m,
        "TILE": tile,
        "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap,
        "HAS_PARTS": has_parts,
        "COMPUTE": compute_type(dtype),
    }
    warps = 8 if block_m >= 128 or block_m * widest >= 128 * 128 else 4
    return LaunchConfiguration(constants, {"num_warps": warps, "num_stages": 2 if shared <= 96 * 1024 else 1, **FUSION})
