"""How much memory the engine may take: a plan for KV and steps, made from the machine before anything starts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .activations import StepMemory
from .errors import MemoryBudgetError

DEFAULT_KV_TOKENS = 262_144
"""A default pool holds at most this many tokens (or one whole context, if that is longer)."""
LOGITS_BYTES = 256 * 2**20
"""Logits of one step, in float32, at most (but always those of one row)."""
MIN_BATCH_TOKENS = 64
"""Steps are not made smaller than this to save memory; below, the model does not fit."""

_MAX_BATCH_TOKENS = {"cuda": 8192}  # elsewhere 1024: larger steps do not make CPU products faster
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """What the engine may use, and the bytes that it comes from; the weights are loaded already."""

    num_blocks: int
    max_batch_tokens: int
    max_logits: int
    weights: int
    kv: int
    activations: int
    logits: int
    free: int

    def __str__(self) -> str:
        return (
            f"weights {_size(self.weights)} (loaded), KV pool {_size(self.kv)}, activations {_size(self.activations)}"
            f" and logits {_size(self.logits)} of a step of {self.max_batch_tokens} tokens, free {_size(self.free)}"
        )


def plan_memory(
    kv_memory: int | str | None,
    max_batch_tokens: int | None,
    *,
    max_running: int,
    step: StepMemory,
    bytes_per_token: int,
    block_size: int,
    context: int | None,
    weights: int,
    device: torch.device,
) -> MemoryPlan:
    """Choose what is None so that KV, activations and logits fit in what is free on `device`.

    `max_running` is how many rows a step may have, `bytes_per_token` is of KV, `context` the model's limit, `weights`
    the bytes of the loaded model. Raises MemoryBudgetError, with the numbers, for a budget that is malformed or cannot
    be met.
    """
    free = free_memory(device)
    block_bytes = bytes_per_token * block_size
    longest = context or DEFAULT_KV_TOKENS
    share = free * (8 if device.type == "cuda" else 3) // 10  # a machine's memory is others' too
    budget = None if kv_memory is None else _budget(kv_memory, block_bytes, block_size, free, device)
    for_steps = share // 2 if budget is None else free - budget

    num_tokens = max_batch_tokens or _MAX_BATCH_TOKENS.get(device.type, 1024)
    while True:
        num_rows = min(max_logit_rows(step.vocab_size), num_tokens)
        activations, logits = step.activations(num_tokens, min(max_running, num_tokens), longest), step.logits(num_rows)
        if max_batch_tokens is not None or activations + logits <= for_steps or num_tokens <= MIN_BATCH_TOKENS:
            break
        num_tokens = max(MIN_BATCH_TOKENS, num_tokens // 2)
    if budget is None:
        budget = min(max(DEFAULT_KV_TOKENS, longest) * bytes_per_token, share - activations - logits)
    num_blocks = max(1, budget // block_bytes)
    kv = num_blocks * block_bytes
    plan = MemoryPlan(num_blocks, num_tokens, num_rows, weights, kv, activations, logits, free)
    if kv + activations + logits > free:
        raise MemoryBudgetError(
            f"the engine needs {_size(kv + activations + logits)}, and {_size(free)} are free on {device}: {plan};"
            " lower kv_memory or max_batch_tokens, or take a smaller model"
        )
    return plan


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


def max_logit_rows(vocab_size: int) -> int:
    """Rows of logits that one step may have."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; on the CPU at most what the process' control group leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [limit for limit in (_machine_free(), _group_free(_CGROUP)) if limit is not None]
    return min(limits, default=4 * 2**30)  # no way to ask


def _budget(kv_memory: int | str, block_bytes: int, block_size: int, free: int, device: torch.device) -> int:
    budget = parse_bytes(kv_memory)
    if budget < block_bytes:
        raise MemoryBudgetError(
            f"kv_memory of {budget} bytes is less than one block: {block_size} tokens of {block_bytes // block_size}"
            f" bytes = {block_bytes} bytes"
        )
    if budget > free:
        raise MemoryBudgetError(f"kv_memory of {budget} bytes is more than the {free} bytes free on {device}")
    return budget


def _machine_free() -> int | None:
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
        return None


def _group_free(root: Path) -> int | None:
    """What a container's limit leaves (version 2, then 1); its page cache can be given up. None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            total, current = int((root / limit).read_text()), int((root / used).read_text())
            stat = dict(line.split() for line in ((root / limit).parent / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # "max" is no number
        if total < 2**60:  # version 1 says "no limit" by a huge number
            return max(0, total - current + int(stat.get(cache, 0)))
    return None


def _size(count: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = 2 ** {"TiB": 40, "GiB": 30, "MiB": 20, "KiB": 10}[unit]
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
