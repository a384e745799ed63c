"""Memory of mapped weight files: given back as soon as the weights are somewhere else."""

from __future__ import annotations

import bisect
import ctypes
import sys
from collections.abc import Iterable

import torch

_DONTNEED = 4  # of Linux's madvise


class FilePages:
    """The files that some weights are mapped from; does nothing except on Linux.

    transformers maps weights of a file's own type into memory, and their pages count as the process's once they are
    read. A copy of a model would so take twice the memory on the way; `drop` after each part keeps it to one. Only for
    weights that nobody writes to: what was changed in memory is lost.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._storages: list[torch.UntypedStorage] = []  # holds the mappings, so that nothing else comes to their place
        mappings = _file_mappings()
        starts = [start for start, _ in mappings]
        for weight in weights:
            if weight.device.type != "cpu" or weight.numel() == 0:
                continue
            place = bisect.bisect_right(starts, weight.data_ptr()) - 1
            if place >= 0 and weight.data_ptr() < mappings[place][1] and mappings[place] not in self._ranges:
                self._ranges.append(mappings[place])
                self._storages.append(weight.untyped_storage())

    def drop(self) -> None:
        """Give the pages back; they are read from the file again where they are still used."""
        if not self._ranges:
            return
        libc = ctypes.CDLL(None)
        for start, end in self._ranges:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _file_mappings() -> list[tuple[int, int]]:
    """Start and end of everything that this process has mapped from files."""
    if not sys.platform.startswith("linux"):
        return []
    mappings = []
    try:
        with open("/proc/self/maps") as lines:
            for line in lines:
                addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
                if inode != "0":
                    start, end = addresses.split("-")
                    mappings.append((int(start, 16), int(end, 16)))
    except OSError:
        return []
    return mappings
