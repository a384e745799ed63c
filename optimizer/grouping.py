"""Dense ids for equal keys, and sorting by them: what every pass over cell codes is built from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]  # places in an array of fewer than 2**31 entries, at half the memory
AnyInts = npt.NDArray[np.integer[Any]]
MAX_KEY = 2**62
DIRECT_KEYS = 2  # a table that keys index needs no hashing up to this many entries per key
# odd numbers that spread keys over the high bits of their product; another one for each further attempt
MULTIPLIERS = [np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)]


def first_equal(keys: Ints, size: int = MAX_KEY) -> Indices:
    """For each key (0 or more, below `size`) the first place at which it stands, [keys].

    Keys are put into a table at a place that their product with a number gives, the first of equal ones last, so that
    it stays. Those that find another key there try again among themselves. This is faster than a general hash table,
    which would make room for new keys one by one.
    """
    count = len(keys)
    first = np.empty(count, dtype=np.int32)
    if size <= DIRECT_KEYS * count:
        table = np.empty(size, dtype=np.int32)
        table[keys[::-1]] = np.arange(count - 1, -1, -1, dtype=np.int32)
        return table[keys]
    places = np.arange(count, dtype=np.int32)
    attempt = 0
    while len(places):
        bits = max(len(places) - 1, 1).bit_length() + 1
        table = np.empty(1 << bits, dtype=np.int32)
        slots = (keys.view(np.uint64) * MULTIPLIERS[attempt % len(MULTIPLIERS)]) >> np.uint64(64 - bits)
        slots = slots.view(np.int64)
        table[slots[::-1]] = np.arange(len(places) - 1, -1, -1, dtype=np.int32)
        found = table[slots]
        first[places] = places[found]
        missed = np.flatnonzero(keys[found] != keys)
        keys, places = keys[missed], places[missed]
        attempt += 1
    return first


def group_keys(keys: AnyInts, size: int = MAX_KEY) -> Ints:
    """Ids 0, 1, ... of the distinct keys (0 or more, below `size`) in order of first occurrence; int64 [keys]."""
    first = first_equal(keys.astype(np.int64, copy=False), size)
    number = np.cumsum(first == np.arange(len(first), dtype=np.int32)) - 1
    ids: Ints = number[first]
    return ids


def first_of_group(ids: Ints) -> Ints:
    """The first position of each dense id; `ids` are numbered in order of first occurrence."""
    if len(ids) == 0:
        return np.zeros(0, dtype=np.int64)
    highest = np.maximum.accumulate(ids)
    return np.concatenate([[0], np.flatnonzero(highest[1:] > highest[:-1]) + 1]).astype(np.int64)


def runs(keys: AnyInts, size: int) -> list[tuple[int, int]]:
    """Cut sorted keys (0 or more) between unequal ones: first and last place of pieces of at most `size`.

    Only a piece of one key is larger.
    """
    starts = np.append(run_starts(keys), len(keys))
    pieces, first = [], 0
    while first < len(starts) - 1:
        last = max(int(np.searchsorted(starts, starts[first] + size, side="right")) - 1, first + 1)
        pieces.append((int(starts[first]), int(starts[last])))
        first = last
    return pieces


def run_starts(keys: AnyInts) -> Ints:
    """Where runs of equal keys (0 or more) begin."""
    return np.flatnonzero(np.diff(keys, prepend=-1))


def stable_order(keys: AnyInts, size: int) -> Indices:
    """Places of the keys (0 or more, below `size`) in ascending order, equal ones as they stand, [keys].

    numpy sorts 16-bit integers by counting, which beats comparing up to a few digits of that size.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable").astype(np.int32)  # by the lowest digit
    for shift in range(16, max(size - 1, 1).bit_length(), 16):
        order = order[np.argsort((keys >> shift).astype(np.uint16)[order], kind="stable")]
    return order
