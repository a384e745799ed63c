"""Which cell comes first where rows part: the cells there differ, but may still begin alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .cells import Cells
from .clusters import Clusters
from .grouping import Ints
from .literals import quote_name
from .partial_prefixes import common_prefix_characters


def head_columns(cells: Cells, clusters: Clusters, common: Ints) -> Ints:
    """For each cluster the column with which its children should begin, as their cells begin alike there; [clusters].

    Children are the rows and clusters directly inside. Sharing counts between neighbours when cells are sorted by text.
    """
    parents = np.concatenate([clusters.parents[1:], clusters.rows])
    gains = np.zeros(common.shape, dtype=np.int64)
    for column in range(cells.num_columns):
        first_id, num_texts = cells.offsets[column], len(cells.texts[column])
        codes = np.concatenate([common[1:, column] - first_id, cells.codes[:, column]])
        # 0 and the ids of NULL, too, are out of range
        children = np.flatnonzero((codes >= 0) & (codes < num_texts) & (common[parents, column] == 0))
        if len(children) < 2:
            continue
        rank, shared = _text_order(
            cells.texts[column], np.bincount(codes[children], minlength=num_texts) > 0, quote_name(cells.names[column])
        )
        ranked, homes = rank[codes[children]], parents[children]
        order = np.argsort(homes * num_texts + ranked, kind="stable")
        ranked, homes = ranked[order], homes[order]
        together = np.flatnonzero(homes[1:] == homes[:-1])
        lengths = shared.minimum_between(ranked[together], ranked[together + 1])
        gains[:, column] = np.bincount(homes[together], lengths, len(gains))
    best: Ints = gains.argmax(axis=1)
    return best


class _RangeMinimum:
    """Minimum over any range of an array, from minima over ranges of powers of two."""

    def __init__(self, values: Ints):
        self.levels = [values]
        while 2 ** len(self.levels) <= len(values):
            half = 2 ** (len(self.levels) - 1)
            self.levels.append(np.minimum(self.levels[-1][:-half], self.levels[-1][half:]))

    def minimum_between(self, starts: Ints, ends: Ints) -> Ints:
        """Minimum of values[start:end] for each pair; 0 where the range is empty."""
        minima = np.zeros(len(starts), dtype=np.int64)
        span = ends - starts
        power = np.frexp(span)[1] - 1  # floor of the logarithm; -1 for 0
        for level in range(len(self.levels)):
            at = np.flatnonzero(power == level)
            values = self.levels[level]
            minima[at] = np.minimum(values[starts[at]], values[ends[at] - 2**level])
        return minima


def _text_order(texts: pa.Array, used: npt.NDArray[np.bool_], known: str) -> tuple[Ints, _RangeMinimum]:
    """Rank of each used text among those in sorted order, and the prefixes that neighbours in that order share.

    All of them begin with `known`.
    """
    numbers = np.flatnonzero(used)
    chosen = texts.take(pa.array(numbers))
    order = pc.sort_indices(chosen).to_numpy().astype(np.int64)
    rank = np.zeros(len(texts), dtype=np.int64)
    rank[numbers[order]] = np.arange(len(order))
    return rank, _RangeMinimum(common_prefix_characters(chosen, order[:-1], order[1:], known))
