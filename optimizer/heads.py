"""Which cell comes first where rows part: the cells there differ, but may still begin alike."""

from __future__ import annotations

import numpy as np

from .cells import Cells
from .clusters import Clusters, children_parents
from .grouping import Indices, Ints, stable_order
from .numbering import Numbering


def head_columns(cells: Cells, numbering: Numbering, clusters: Clusters, common: Indices) -> Ints:
    """For each cluster the column with which its children should begin, as their cells begin alike there; [clusters].

    Children are the rows and clusters directly inside. Sharing counts between neighbours when cells are sorted by text.
    `common` [clusters, columns] is that of `common_cells`.
    """
    parents = children_parents(clusters)
    best = np.zeros(clusters.num_clusters, dtype=np.int64)
    best_gain = np.zeros(clusters.num_clusters)
    for column in range(cells.num_columns):
        first, end = numbering.firsts[column : column + 2]
        ids = np.concatenate([common[1:, column], numbering.ids[:, column]])
        # ids of NULL come first, and neither they nor 0 have a text
        children = np.flatnonzero((ids > first) & (common[:, column] == 0)[parents])
        if len(children) < 2:
            continue
        texts = cells.sorted_texts(column)
        num_texts = len(texts.ranks)
        ranks = texts.ranks[numbering.codes[first:end]]
        keys = parents[children] * np.int64(num_texts) + ranks[ids[children] - first]
        keys = keys[stable_order(keys, clusters.num_clusters * num_texts)]
        homes, places = np.divmod(keys, num_texts)
        pairs = np.flatnonzero((homes[1:] == homes[:-1]) & (places[1:] > places[:-1]))
        lengths = texts.begins.between(places[pairs] + 1, places[pairs + 1] + 1)
        gain = np.bincount(homes[pairs], lengths, len(best))
        best[gain > best_gain] = column
        np.maximum(best_gain, gain, out=best_gain)
    return best
