"""The distinct texts of one column in sorted order, and how far neighbours in that order begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grouping import AnyInts, Indices
from .partial_prefixes import common_prefix_characters


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

    def shared_among(self, ranks: AnyInts) -> Indices:
        """Characters that each of some ascending ranks shares with the one before it, [ranks]; 0 for the first."""
        if len(ranks) in (0, len(self.shared)):
            return self.shared[: len(ranks)]
        # the minimum over the ranks after the one before, up to the own one
        shared: Indices = np.minimum.reduceat(self.shared[: int(ranks[-1]) + 1], np.append(0, ranks[:-1] + 1))
        shared[0] = 0
        return shared


class RangeMinimum:
    """Minimum over any range of an array, from minima over ranges of powers of two."""

    def __init__(self, values: Indices):
        self._levels = [values]
        while 2 ** len(self._levels) <= len(values):
            half = 2 ** (len(self._levels) - 1)
            self._levels.append(np.minimum(self._levels[-1][:-half], self._levels[-1][half:]))

    def between(self, starts: AnyInts, ends: AnyInts) -> Indices:
        """Minimum of values[start:end] for each pair of places, of which no range is empty."""
        minima = np.zeros(len(starts), dtype=np.int32)
        power = np.frexp((ends - starts).astype(np.float64))[1] - 1  # floor of the logarithm
        for level, values in enumerate(self._levels):
            at = np.flatnonzero(power == level)
            minima[at] = np.minimum(values[starts[at]], values[ends[at] - 2**level])
        return minima
