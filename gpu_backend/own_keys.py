"""The keys that each row of a step reads by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import TableArrays, ragged_arange
from .cascade import TILE_QUERIES, Ints
from .key_map import KeyMap
from .tiles import Tiles


@dataclass(frozen=True)
class Rows:
    """The rows of a step in the order of its plan."""

    row: Ints  # [rows] index in the table
    place: Ints  # [rows + 1] of their first query tokens in the plan's order
    position: Ints  # [rows] of their first query tokens
    num_chain_nodes: Ints  # [rows] nodes at the top of their paths that are read with other rows


def own_tiles(table: TableArrays, rows: Rows, keys: KeyMap, window: int | None) -> Tiles:
    """Tiles that show every query token the end of its row's path, from below what is read with other rows."""
    begin = table.path_start[:-1][rows.row] + rows.num_chain_nodes  # entries of path_nodes
    num_nodes = table.path_start[1:][rows.row] - begin
    ends = np.cumsum(num_nodes)
    starts = ends - num_nodes
    nodes = table.path_nodes[ragged_arange(begin, num_nodes)].astype(np.int64)
    follows = np.ones(len(nodes), np.bool_)  # a node's keys come right after those of the node above
    follows[1:] = keys.first_slot[nodes[1:]] == keys.first_slot[nodes[:-1]] + keys.length[nodes[:-1]]
    follows[starts] = True
    broken = np.concatenate([np.zeros(1, np.int64), np.cumsum(~(follows & keys.is_run[nodes]))])
    is_run = broken[ends] == broken[starts]
    lengths = np.where(np.repeat(is_run, num_nodes), 0, keys.length[nodes])
    listed_from = np.cumsum(lengths)[ends - 1] - np.add.reduceat(lengths, starts)

    num_queries = np.diff(rows.place)
    num_tiles = -(-num_queries // TILE_QUERIES)
    row = np.repeat(np.arange(len(num_tiles)), num_tiles)
    first = ragged_arange(np.zeros(len(num_tiles), np.int64), num_tiles) * TILE_QUERIES
    num_queries = np.minimum(num_queries[row] - first, TILE_QUERIES)
    position = rows.position[row] + first
    own_begin = table.node_position[nodes[starts]].astype(np.int64)[row]
    skipped = np.zeros(len(row), np.int64)
    if window is not None:
        skipped = np.maximum(0, position - window + 1 - own_begin)
    return Tiles(
        place=rows.place[:-1][row] + first,
        num_queries=num_queries,
        num_keys=position + num_queries - own_begin - skipped,
        slot=np.where(is_run[row], keys.first_slot[nodes[starts]][row] + skipped, -1),
        listed_from=listed_from[row] + skipped,
        listed=keys.slots(nodes, lengths),
        causal=True,
        window=window,
    )
