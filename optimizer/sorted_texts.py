"""The distinct texts of one column in sorted order, and how far neighbours in that order begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grouping import AnyInts, Indices
from .partial_prefixes import common_prefix_characters

BLOCK = 16


@dataclass(frozen=True)
class SortedTexts:
    """Texts by rank; what any two of them share is the least that neighbours between them do."""

    texts: pa.Array  # large_string [distinct]
    head: str  # with which all of them begin

    @cached_property
    def order(self) -> Indices:
        """Codes of the texts in ascending order of their bytes, [distinct]."""
        order: Indices = pc.sort_indices(self.texts).to_numpy().astype(np.int32)
        return order

    @cached_property
    def ranks(self) -> Indices:
        """The place of each code in `order`, [distinct]."""
        ranks = np.empty(len(self.order), dtype=np.int32)
        ranks[self.order] = np.arange(len(ranks), dtype=np.int32)
        return ranks

    @cached_property
    def shared(self) -> Indices:
        """Characters with which each text begins as the one before it in order does, [distinct]; 0 for the first."""
        order = self.order.astype(np.int64)
        shared = np.zeros(len(order), dtype=np.int32)
        shared[1:] = common_prefix_characters(self.texts, order[:-1], order[1:], self.head)
        return shared

    @cached_property
    def begins(self) -> RangeMinimum:
        """What any two texts begin with: the minimum of `shared` behind the lower rank, up to the higher."""
        return RangeMinimum(self.shared)


class RangeMinimum:
    """Minimum over any range of an array, from minima within and over blocks of it."""

    def __init__(self, values: Indices):
        self.values = values
        padded = np.append(values, np.full(-len(values) % BLOCK, np.iinfo(np.int32).max, dtype=np.int32))
        blocks = padded.reshape(-1, BLOCK)
        self._from_begin = np.minimum.accumulate(blocks, axis=1).ravel()  # of the block, up to each place
        self._to_end = np.ascontiguousarray(np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1]).ravel()
        self._levels = [self._to_end[::BLOCK]]  # minima of 1, 2, 4, ... blocks
        while 2 ** len(self._levels) <= len(blocks):
            half = 2 ** (len(self._levels) - 1)
            self._levels.append(np.minimum(self._levels[-1][:-half], self._levels[-1][half:]))

    def between(self, starts: AnyInts, ends: AnyInts) -> Indices:
        """Minimum of values[start:end] for each pair of places, of which no range is empty."""
        lasts = ends - 1
        minima = self.values[starts]
        longer = np.flatnonzero(lasts > starts)
        starts, lasts = starts[longer], lasts[longer]
        blocks = lasts // BLOCK - starts // BLOCK
        found = np.minimum(self._to_end[starts], self._from_begin[lasts])
        inside = np.flatnonzero(blocks == 0)  # there both would look at places outside of the range
        if len(inside):
            found[inside] = self._within_block(starts[inside], lasts[inside])
        between = np.flatnonzero(blocks > 1)
        if len(between):
            first = starts[between] // BLOCK + 1
            span = blocks[between] - 1
            power = np.frexp(span.astype(np.float64))[1] - 1  # floor of the logarithm
            for level in range(int(power.max()) + 1):
                at = np.flatnonzero(power == level)
                values, left = self._levels[level], first[at]
                least = np.minimum(values[left], values[left + span[at] - 2**level])
                found[between[at]] = np.minimum(found[between[at]], least)
        minima[longer] = found
        return minima

    def _within_block(self, starts: AnyInts, lasts: AnyInts) -> Indices:
        minima = self.values[lasts]
        for step in range(int((lasts - starts).max())):
            np.minimum(minima, self.values[np.minimum(starts + step, lasts)], out=minima)
        return minima
