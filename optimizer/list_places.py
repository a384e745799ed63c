"""Where in each row an order-free list stands: before or behind what its rows share otherwise, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grouping import Ints, group_keys
from .growth import Floats
from .item_trees import grow_items, saved_by_row
from .pieces import Pieces
from .prefix_tree import walk
from .unordered import ItemLists

MAX_DEPTH = 16  # pieces; a list is not put behind more
AT_THE_END = -1
# how much more a node must save by its other fields than by the items for these to come later; both are estimates
WAYS = {"list first": np.inf, "list after shared": 0.0, "list by node": 1.0, "list by node, rather early": 1.25}


@dataclass(frozen=True)
class _Prefixes:
    """The prefixes that rows share without the list."""

    nodes: Ints  # [rows, depths] the node that holds the row behind so many pieces, -1 where no other row is in it
    saved: Floats  # [rows, depths - 1] what a row saves by each piece, split evenly among the rows of the node
    depths: Ints  # [rows] pieces shared with other rows
    closed: npt.NDArray[np.bool_]  # [rows, depths] whether a field ends there, so that another may begin


def place_list(
    pieces: Pieces, fields: Ints, item_ids: Mapping[int, Ints], column: int, items: ItemLists
) -> Iterator[tuple[str, Ints, Ints]]:
    """Ways to place a list column: a name, the fields [rows, columns], and the homes [rows] of those who share items.

    `fields` is for each table row; `item_ids` are those of the other lists as they are shown. Behind each prefix the
    rows may go on with their other fields, or with items that they then share and nothing behind: what both save is
    compared from the inside out, and the rows of a node that go on with the list are put in order together.
    """
    others: Ints = fields[fields != column].reshape(len(fields), fields.shape[1] - 1)
    prefixes, ends = _prefixes(pieces, others, item_ids)
    by_items = _saved_by_items(prefixes, items)
    tried: list[Ints] = []
    for name, favour in WAYS.items():
        depth = _choose(prefixes, by_items, favour)
        if any(np.array_equal(depth, other) for other in tried):
            continue
        tried.append(depth)
        rows, last = np.arange(len(depth)), np.maximum(depth, 0)
        # rows whose list stands at the end do not share it with each other
        homes = np.where(depth >= 0, prefixes.nodes[rows, last], int(prefixes.nodes.max(initial=0)) + 1 + rows)
        before = np.where(depth >= 0, (ends <= depth[:, None]).sum(axis=1), others.shape[1])
        yield name, _inserted(others, column, before), group_keys(homes)


def _prefixes(pieces: Pieces, others: Ints, item_ids: Mapping[int, Ints]) -> tuple[_Prefixes, Ints]:
    """The shared prefixes, and the number of pieces behind which each field ends, [rows, columns - 1]."""
    sequences, counts = pieces.sequences(others, item_ids)
    ends: Ints = np.cumsum(counts, axis=1)
    num_rows, width = len(others), min(sequences.shape[1], MAX_DEPTH)
    nodes = np.full((num_rows, width + 1), -1)
    nodes[:, 0] = 0
    saved = np.zeros((num_rows, width))
    num_nodes = 1
    for level in walk(sequences[:, :width]):
        number = np.cumsum(level.starts) - 1
        sizes = np.bincount(number)[number]
        ranks = sequences[level.rows, level.depth]
        shared = (sizes > 1) & (ranks > 0)
        rows = level.rows[shared]
        nodes[rows, level.depth + 1] = num_nodes + number[shared]
        saved[rows, level.depth] = pieces.order.lengths[ranks[shared]] * (1 - 1 / sizes[shared])
        num_nodes += len(number)
    closed = np.zeros((num_rows, width + 1), dtype=bool)
    closed[:, 0] = True
    for place in range(ends.shape[1]):
        rows = np.flatnonzero(ends[:, place] <= width)
        closed[rows, ends[rows, place]] = True
    return _Prefixes(nodes, saved, (nodes >= 0).sum(axis=1) - 1, closed), ends


def _saved_by_items(prefixes: _Prefixes, items: ItemLists) -> Floats:
    """What each row would save if at some depth all rows of its node went on with the list, [rows, depths]."""
    saved: Floats = np.zeros(prefixes.nodes.shape)
    for depth in range(prefixes.nodes.shape[1]):
        rows = np.flatnonzero((prefixes.depths >= depth) & prefixes.closed[:, depth])
        if len(rows):
            here = ItemLists(items.ids[rows], items.texts, items.lengths)
            saved[rows, depth] = saved_by_row(grow_items(here, group_keys(prefixes.nodes[rows, depth])), here)
    return saved


def _choose(prefixes: _Prefixes, by_items: Floats, favour: float) -> Ints:
    """The depth at which each row goes on with the list, from the inside out; AT_THE_END if at none."""
    rows = np.arange(len(by_items))
    open_there = prefixes.closed[rows, prefixes.depths]
    value = np.where(open_there, by_items[rows, prefixes.depths], 0.0)
    choice = np.where(open_there, prefixes.depths, AT_THE_END)
    for depth in reversed(range(by_items.shape[1] - 1)):
        inside = np.flatnonzero((prefixes.depths > depth) & prefixes.closed[:, depth])
        goes_on = prefixes.saved[:, depth] + value
        value = np.where(prefixes.depths > depth, goes_on, value)
        if not len(inside):
            continue
        child = group_keys(prefixes.nodes[inside, depth + 1])
        weight = favour if np.isfinite(favour) else 1.0
        opens = np.bincount(child, weight * by_items[inside, depth]) > np.bincount(child, value[inside])
        opened = inside[opens[child] | np.isinf(favour)]
        value[opened], choice[opened] = by_items[opened, depth], depth
    return choice


def _inserted(others: Ints, column: int, before: Ints) -> Ints:
    """Fields with a column put behind the first `before` others of each row."""
    place = np.arange(others.shape[1])
    keys = np.concatenate([place + (place >= before[:, None]), before[:, None]], axis=1)
    columns = np.concatenate([others, np.full((len(others), 1), column)], axis=1)
    return np.take_along_axis(columns, np.argsort(keys, axis=1, kind="stable"), axis=1)
