"""Texts that begin alike without being equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
FIRST_CHUNK = 16  # bytes; most texts differ early
MAX_BYTES = 1_000_000  # compared at once


def common_prefix_characters(texts: pa.Array, left: Ints, right: Ints) -> Ints:
    """Length in characters of the longest common prefix of `texts[left[i]]` and `texts[right[i]]`, int64 [pairs].

    `texts` is a large_string array without NULLs.
    """
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    content = np.frombuffer(data if data is not None and data.size else b"\0", np.uint8)
    limit = np.minimum(offsets[left + 1] - offsets[left], offsets[right + 1] - offsets[right])
    characters = np.zeros(len(left), dtype=np.int64)
    active = np.flatnonzero(limit > 0)
    done, chunk = 0, FIRST_CHUNK
    while len(active):
        place = done + np.arange(chunk)
        first = content[np.minimum(offsets[left[active], None] + place, len(content) - 1)]
        second = content[np.minimum(offsets[right[active], None] + place, len(content) - 1)]
        equal = np.logical_and.accumulate((first == second) & (place < limit[active, None]), axis=1)
        characters[active] += (equal & ((first & 0xC0) != 0x80)).sum(axis=1)
        length = equal.sum(axis=1)
        stopped = length < chunk
        # a character whose first bytes agree and whose last do not is not shared
        cut = stopped & (done + length < limit[active])
        rest = np.take_along_axis(first, np.minimum(length, chunk - 1)[:, None], axis=1)[:, 0]
        characters[active[cut & ((rest & 0xC0) == 0x80)]] -= 1
        active = active[~stopped]
        done += chunk
        active = active[limit[active] > done]
        chunk = max(FIRST_CHUNK, min(2 * chunk, MAX_BYTES // max(len(active), 1)))
    return characters
