"""How the C library keeps memory between the operations of a step."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

KEPT_BYTES = 256 * 2**20
"""How much freed memory at the end of a heap stays with the process."""
MAPPED_BYTES = 32 * 2**20
"""From this size on memory is mapped by itself, and goes back when it is freed."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to `KEPT_BYTES` that are free, instead of giving them back after each layer of a long prompt.

    Every page that comes back costs a fault and is cleared again: some 30,000 in a batch of 2,560 prompt tokens of a
    model of 25 M parameters, 3 to 8 % of its time. A no-op where the user has set malloc's own variables, and where
    there is no glibc.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)


def give_back_freed_memory() -> None:
    """Give the system what is free between used parts of the heap: weights that were packed leave holes as they go."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
