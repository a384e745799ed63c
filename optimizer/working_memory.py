"""How much of a table is planned at once, given the memory that planning may take."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OptimizerError

PART_CELLS = 2**18  # planned together; larger parts take longer and find no more
BYTES_PER_CELL = 100  # that planning takes at its peak, as measured on tables of 8 to 1,000 columns
SHARE_OF_FREE = 4  # a quarter of the free memory is taken when nothing else is said
MEMORY_INFO = Path("/proc/meminfo")
GROUP_FOLDER = Path("/sys/fs/cgroup")


def part_cells(working_memory: int | None) -> int:
    """Cells that are planned at once within so many bytes, or within a quarter of the free memory when None.

    Raises OptimizerError for less than one byte.
    """
    if working_memory is None:
        free = free_memory()
        return PART_CELLS if free is None else max(min(PART_CELLS, free // SHARE_OF_FREE // BYTES_PER_CELL), 1)
    if working_memory < 1:
        raise OptimizerError(f"working_memory must be at least 1 byte, got {working_memory}")
    return max(min(PART_CELLS, working_memory // BYTES_PER_CELL), 1)


def free_memory() -> int | None:
    """Bytes that this process can still take, by the machine and its control group; None where that is not known."""
    found = [bytes_left for bytes_left in (_free_of_machine(), _free_of_group()) if bytes_left is not None]
    return min(found, default=None)


def _free_of_machine() -> int | None:
    try:
        for line in MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _free_of_group() -> int | None:
    try:
        limit = (GROUP_FOLDER / "memory.max").read_text().strip()
        used = int((GROUP_FOLDER / "memory.current").read_text())
        return None if limit == "max" else max(int(limit) - used, 0)
    except (OSError, ValueError):
        return None
