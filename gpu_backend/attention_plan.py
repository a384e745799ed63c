"""A step's attention cut into batched products: shared chains of nodes level by level, and each row's own keys.

Pure numpy. A plan says which query tokens meet which KV slots; it differs between layers only by the sliding window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attention_part import Part
from .batch import TableArrays
from .cascade import Costs, Ints, shared_groups
from .key_map import KeyMap
from .own_keys import own_tiles
from .shared_keys import SharedKeys


@dataclass(frozen=True)
class Plan:
    """Parts that together show every query each of its keys exactly once; every query is in one of the own parts."""

    order: Ints | None  # [tokens] the packed token at each place; None: they stand as they are packed
    own: list[Part]
    levels: list[list[Part]]  # each level's parts show different tokens


class Planner:
    """Plans for one step."""

    def __init__(
        self,
        table: TableArrays,
        block_size: int,
        *,
        costs: Costs,
        cascade: bool = True,
        previous: Planner | None = None,
    ) -> None:
        """`previous`, the planner of an earlier step with the same settings, saves work where little has changed."""
        self._table = table
        self._costs = costs
        self._keys = KeyMap(table, block_size)
        self._shared: SharedKeys
        if previous is not None and _differ_in_own_nodes_only(previous._table, table):
            self._shared = previous._shared
        else:
            groups = shared_groups(table, self._costs) if cascade else []
            self._shared = SharedKeys(table, groups, self._keys, self._costs)
        self._rows = self._shared.rows(table)

    def plan(self, window: int | None = None) -> Plan:
        """The parts under a sliding window of `window` keys (None: no window)."""
        if window is not None and window >= int((self._table.node_position + self._table.node_len).max()):
            window = None
        own = own_tiles(self._table, self._rows, self._keys, window).parts(self._costs)
        return Plan(self._shared.order, own, self._shared.levels(window, self._rows))


def _differ_in_own_nodes_only(before: TableArrays, now: TableArrays) -> bool:
    """Whether all that has changed are the lengths and blocks of nodes that one row has to itself, and positions."""
    same = (
        np.array_equal(before.query_start, now.query_start)
        and np.array_equal(before.path_start, now.path_start)
        and np.array_equal(before.path_nodes, now.path_nodes)
        and np.array_equal(before.node_position, now.node_position)
        and np.array_equal(before.node_offset, now.node_offset)
    )
    if not same:
        return False
    lasting = np.ones(len(now.node_len), np.bool_)
    lasting[now.path_nodes[now.path_start[1:] - 1]] = False
    held_before, held_now = np.diff(before.node_block_start), np.diff(now.node_block_start)
    if np.bincount(now.path_nodes, minlength=len(lasting))[~lasting].max(initial=0) > 1:
        return False
    return (
        np.array_equal(before.node_len[lasting], now.node_len[lasting])
        and np.array_equal(held_before[lasting], held_now[lasting])
        and np.array_equal(before.blocks[np.repeat(lasting, held_before)], now.blocks[np.repeat(lasting, held_now)])
    )
