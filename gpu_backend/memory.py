"""How much KV and how many logits a model may take: budgets with defaults from the machine."""

from __future__ import annotations

import os
import re

import torch

from .errors import MemoryBudgetError

DEFAULT_KV_TOKENS = 262_144
"""A default pool holds at most this many tokens (or one whole context, if that is longer)."""
LOGITS_BYTES = 256 * 2**20
"""Logits of one step, in float32, at most (but always those of one row)."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(amount: int | str) -> int:
    """Bytes of `4096`, "512MiB", "2GB" (the same as GiB) or "1.5G"; raises MemoryBudgetError."""
    if isinstance(amount, int) and not isinstance(amount, bool):
        number, unit = float(amount), ""
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:I?B)?\s*", str(amount).upper())
        if match is None:
            raise MemoryBudgetError(f"cannot read {amount!r} as an amount of memory: write bytes, or such as '2GiB'")
        number, unit = float(match[1]), match[2]
    if number <= 0:
        raise MemoryBudgetError(f"kv_memory must be positive, got {amount!r}")
    return int(number * _UNITS[unit])


def num_kv_blocks(
    kv_memory: int | str | None, *, bytes_per_token: int, block_size: int, context: int | None, device: torch.device
) -> int:
    """Blocks of the KV pool; raises MemoryBudgetError for a budget of less than a block, or of more than is free."""
    free = free_memory(device)
    block_bytes = bytes_per_token * block_size
    if kv_memory is None:
        share = free * 8 // 10 if device.type == "cuda" else free // 4
        wanted = -(-max(DEFAULT_KV_TOKENS, context or 0) // block_size)
        return max(1, min(share // block_bytes, wanted))
    budget = parse_bytes(kv_memory)
    if budget < block_bytes:
        raise MemoryBudgetError(
            f"kv_memory of {budget} bytes is less than one block: {block_size} tokens of {bytes_per_token} bytes"
            f" = {block_bytes} bytes"
        )
    if budget > free:
        raise MemoryBudgetError(f"kv_memory of {budget} bytes is more than the {free} bytes free on {device}")
    return budget // block_bytes


def max_logit_rows(vocab_size: int) -> int:
    """Rows of logits that one step may have."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:  # counts page cache that can be given up, which sysconf does not
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30  # no way to ask
