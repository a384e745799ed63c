"""Texts, or runs of tokens, that begin alike without being equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
WORD = 8  # bytes
NUM_WORDS = 3  # compared one by one, as most texts differ early
MAX_ELEMENTS = 1_000_000  # compared at once after that


def common_prefix_characters(texts: pa.Array, left: Ints, right: Ints, known: str = "") -> Ints:
    """Length in characters of the longest common prefix of `texts[left[i]]` and `texts[right[i]]`, int64 [pairs].

    `texts` is a large_string array without NULLs; all of them begin with `known`, which is not looked at.
    """
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    content = np.frombuffer(
        data if data is not None and data.size >= WORD else bytes(data or b"").ljust(WORD), np.uint8
    )
    known_bytes = len(known.encode())
    starts = offsets[left] + known_bytes, offsets[right] + known_bytes
    limit = np.minimum(offsets[left + 1] - starts[0], offsets[right + 1] - starts[1])
    lengths = np.full(len(left), len(known), dtype=np.int64)
    active = np.flatnonzero(limit > 0)
    for word in range(NUM_WORDS):
        active = _compare_words(content, starts, limit, lengths, active, word * WORD)
    _compare_runs(content, starts, limit, lengths, active, NUM_WORDS * WORD)
    return lengths


def common_prefix_tokens(tokens: npt.NDArray[np.int32], offsets: Ints, left: Ints, right: Ints) -> Ints:
    """The same in tokens for runs of them: run i is `tokens[offsets[i] : offsets[i + 1]]`."""
    starts = offsets[left], offsets[right]
    limit = np.minimum(offsets[left + 1] - starts[0], offsets[right + 1] - starts[1])
    lengths = np.zeros(len(left), dtype=np.int64)
    _compare_runs(tokens, starts, limit, lengths, np.flatnonzero(limit > 0), 0)
    return lengths


def _compare_words(
    content: npt.NDArray[np.uint8], starts: tuple[Ints, Ints], limit: Ints, lengths: Ints, active: Ints, done: int
) -> Ints:
    """Add what the next word of each active pair has in common; the pairs that are equal so far and go on."""
    last = len(content) - WORD
    words = np.ndarray(last + 1, np.dtype("<u8"), content, strides=(1,))  # one begins at every byte
    places = [start[active] + done for start in starts]
    first, second = (
        words[np.minimum(place, last)] >> (8 * np.maximum(place - last, 0)).astype(np.uint64) for place in places
    )
    different = first ^ second
    lowest = different & (~different + np.uint64(1))
    equal = np.where(different == 0, WORD, (np.frexp(lowest.astype(np.float64))[1] - 1) // 8)
    rest = limit[active] - done
    np.minimum(equal, rest, out=equal)
    lengths[active] += equal
    go_on = equal == WORD
    continued = (first & np.uint64(0x8080808080808080)) & ~((first & np.uint64(0x4040404040404040)) << np.uint64(1))
    if continued.any():  # bytes are counted, but only whole characters are shared
        inside = (continued.astype("<u8").view(np.uint8).reshape(-1, WORD) > 0) & (np.arange(WORD) < equal[:, None])
        stop = np.minimum(equal, WORD - 1).astype(np.uint64) * np.uint64(8)
        cut = ~go_on & (equal < rest) & ((continued >> stop) & np.uint64(0x80) > 0)
        lengths[active] -= inside.sum(axis=1) + cut
    going_on: Ints = active[go_on & (rest > WORD)]
    return going_on


def _compare_runs(
    content: npt.NDArray[np.uint8] | npt.NDArray[np.int32],
    starts: tuple[Ints, Ints],
    limit: Ints,
    lengths: Ints,
    active: Ints,
    done: int,
) -> None:
    """Add what the rest of each active pair has in common: characters if the content is bytes, else elements."""
    is_text = content.dtype == np.uint8
    chunk = 2 * WORD
    while len(active):
        place = done + np.arange(chunk)
        inside = place < limit[active, None]
        first, second = (content[np.minimum(start[active, None] + place, len(content) - 1)] for start in starts)
        equal = np.logical_and.accumulate((first == second) & inside, axis=1)
        length = equal.sum(axis=1)
        stopped = length < chunk
        lengths[active] += length
        if is_text:
            lengths[active] -= (equal & ((first & 0xC0) == 0x80)).sum(axis=1)
            rest = np.take_along_axis(first, np.minimum(length, chunk - 1)[:, None], axis=1)[:, 0]
            lengths[active] -= stopped & (done + length < limit[active]) & ((rest & 0xC0) == 0x80)
        active = active[~stopped]
        done += chunk
        active = active[limit[active] > done]
        chunk = max(2 * WORD, min(2 * chunk, MAX_ELEMENTS // max(len(active), 1)))
