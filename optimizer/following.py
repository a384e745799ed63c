"""Fields of rows that follow the prefixes of earlier prompts where those are longer than what the rows share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cells import Cells
from .clusters import (
    Clusters,
    children_parents,
    common_cells,
    depths,
    filled_clusters,
    regroup,
    select_clusters,
    without_redundant,
)
from .earlier_prompts import EarlierPrompts, Hashes
from .fixed import Fields, field_type
from .grouping import AnyInts, Indices, Ints
from .heads import head_columns
from .numbering import number
from .prefix_tree import PromptCells, walk


def following_fields(cells: Cells, fields: Fields, earlier: EarlierPrompts, columns: AnyInts, hashes: Hashes) -> Fields:
    """For each row its columns in prompt order, [rows, columns]: after earlier prompts, or much as in `fields`.

    Rows that share a prefix with `fields` make nested groups. A group, or a single row, leaves the one around it for
    the remembered prefix that its common cells can follow farthest, if that is longer than what the group around it
    has in common. So no more is lost than found, as who leaves gives up no more than that. Those who meet behind one
    prefix are grouped anew by their other cells, and begin with the column by which earlier prompts went on there.
    What may stand in any order without loss stands in that of `columns`, so that a later table finds it so.
    `hashes` are the `cell_hashes`.
    """
    ids, lengths = cells.ids, cells.id_lengths
    clusters = _nested(cells, fields)
    groups = _after(earlier, *without_redundant(clusters, common_cells(clusters, ids)), ids, lengths, hashes)
    clusters = regroup(groups.clusters, common_cells(groups.clusters, ids), ids, lengths, groups.lead[:, 0] >= 0)
    numbering = number(cells)
    heads = head_columns(cells, numbering, clusters, common_cells(clusters, numbering.ids))
    return _fields(clusters, common_cells(clusters, ids), heads, groups, columns)


@dataclass(frozen=True)
class _Groups:
    """Nested groups of rows, some of which stand behind a remembered prefix."""

    clusters: Clusters
    lead: AnyInts  # [clusters, columns] the columns of that prefix in order, -1 behind the last
    next_columns: Ints  # [clusters] by which earlier prompts went on there, -1 for none


def _nested(cells: Cells, fields: Fields) -> Clusters:
    """The rows that share a prefix, as nested clusters."""
    home, parents, count = np.zeros(cells.num_rows, np.int32), [np.full(1, -1)], 1
    for level in walk(PromptCells(cells, fields)):
        number = np.cumsum(level.starts) - 1
        shared = (np.bincount(number)[number] > 1) & (level.cells > 0)
        first = np.flatnonzero(shared & level.starts)
        parents.append(home[level.rows[first]])
        home[level.rows[shared]] = count + np.cumsum(level.starts[shared]) - 1
        count += len(first)
    return Clusters(np.concatenate(parents).astype(np.int32), home)


def _after(
    earlier: EarlierPrompts, clusters: Clusters, common: Indices, ids: Indices, lengths: Ints, hashes: Hashes
) -> _Groups:
    """The clusters, of which those that can follow a longer prefix have left for it."""
    parents = children_parents(clusters)
    paths = earlier.follow(np.concatenate([common[1:], ids]), lengths, hashes)
    leaves = np.flatnonzero(paths.units > lengths[common].sum(axis=1)[parents])
    ends, first, place = np.unique(paths.ends[leaves], return_index=True, return_inverse=True)
    old = clusters.num_clusters
    parents[leaves] = old + place
    above = np.concatenate([[-1], parents[: old - 1], np.zeros(len(ends))]).astype(np.int32)
    lead = np.full((len(above), ids.shape[1]), -1, np.int32)
    lead[old:] = paths.columns[leaves[first]]
    next_columns = np.full(len(above), -1, np.int64)
    next_columns[old:] = earlier.next_columns(ends)
    moved = Clusters(above, parents[old - 1 :])
    filled = filled_clusters(moved)
    return _Groups(select_clusters(moved, filled), lead[filled], next_columns[filled])


def _fields(clusters: Clusters, common: Indices, heads: Ints, groups: _Groups, columns: AnyInts) -> Fields:
    """Columns by the depth at which they become common, at each depth in the order of `columns` behind the head."""
    width = common.shape[1]
    parents, depth = clusters.parents, depths(clusters.parents)
    behind = np.flatnonzero(groups.lead[:, 0] >= 0)
    next_columns = groups.next_columns[behind]
    differ = (next_columns >= 0) & (common[behind, next_columns] == 0)
    heads[behind[differ]] = next_columns[differ]
    rank = np.empty(width, np.int64)
    rank[columns] = 1 + np.arange(width)
    own = rank - np.where(np.arange(width) == heads[:, None], rank, 0)  # [clusters, columns] among its children
    size = width + 1
    levels = np.empty(common.shape, np.int64)
    levels[0] = rank
    for cluster in np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth)))[1:-1]:
        above = parents[cluster]
        levels[cluster] = np.where(common[above] > 0, levels[above], size * depth[cluster][:, None] + own[above])
        if above[0] == 0:  # where all that have left stand
            levels[behind] = _led(levels[behind], groups.lead[behind], np.where(differ, -1, next_columns))
    tail = size * len(levels) + own
    order = np.argsort(np.where(common > 0, levels, tail), axis=1, kind="stable")
    return order.astype(field_type(width))[clusters.rows]


def _led(levels: Ints, lead: AnyInts, next_columns: Ints) -> Ints:
    """The levels [clusters, columns] with the columns of the prefix before all others, and the next one after them."""
    width = levels.shape[1]
    places = np.full((len(levels), width + 1), width, np.int64)  # the last entry stands for column -1
    clusters = np.arange(len(levels))
    places[clusters, next_columns] = width - 1
    for place in reversed(range(width)):
        places[clusters, lead[:, place]] = place
    places = places[:, :width]
    led: Ints = np.where(places < width, places - width, levels)
    return led
