"""Texts that begin alike without being equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
CHUNK = 16


def common_prefix_characters(texts: pa.Array, left: Ints, right: Ints) -> Ints:
    """Length in characters of the longest common prefix of `texts[left[i]]` and `texts[right[i]]`, int64 [pairs].

    `texts` is a large_string array without NULLs.
    """
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    # padded, so that the last text can be read chunk by chunk too
    content = np.concatenate([np.frombuffer(data if data is not None else b"", np.uint8), np.zeros(CHUNK, np.uint8)])
    limit = np.minimum(offsets[left + 1] - offsets[left], offsets[right + 1] - offsets[right])
    characters = np.zeros(len(left), dtype=np.int64)
    active = np.flatnonzero(limit > 0)
    place = np.arange(CHUNK)
    done = 0
    while len(active):
        first = content[offsets[left[active], None] + done + place]
        second = content[offsets[right[active], None] + done + place]
        inside = done + place < limit[active, None]
        equal = np.logical_and.accumulate((first == second) & inside, axis=1)
        characters[active] += (equal & ((first & 0xC0) != 0x80)).sum(axis=1)
        length = equal.sum(axis=1)
        stopped = length < CHUNK
        # a character whose first bytes agree and whose last do not is not shared
        cut = stopped & (done + length < limit[active])
        rest = content[offsets[left[active]] + done + np.minimum(length, CHUNK - 1)]
        characters[active[cut & ((rest & 0xC0) == 0x80)]] -= 1
        active = active[~stopped]
        done += CHUNK
        active = active[limit[active] > done]
    return characters
