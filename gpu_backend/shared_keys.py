"""The keys that several rows of a step read together, level by level of the prefix tree."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .attention_part import Part, Run
from .batch import TableArrays, ragged_arange
from .cascade import Costs, Group, Ints
from .key_map import KeyMap
from .own_keys import Rows
from .tiles import Tiles


class SharedKeys:
    """Chains of nodes, each read once for all rows below it. A row is in one group of a level at most."""

    def __init__(self, table: TableArrays, groups: list[Group], keys: KeyMap, costs: Costs) -> None:
        self._keys = keys
        self._costs = costs
        self._chains = [chain for chain, _ in groups]
        self._levels: list[list[int]] = []
        num_rows = len(table.query_position)
        num_groups, num_chain_nodes = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
        columns: list[Ints] = []
        for index, (chain, rows) in enumerate(groups):
            level = int(num_groups[rows[0]])
            if level == len(columns):
                columns.append(np.full(num_rows, -1, np.int64))
                self._levels.append([])
            columns[level][rows] = index
            self._levels[level].append(index)
            num_groups[rows] += 1
            num_chain_nodes[rows] += len(chain)
        # Rows in an order in which those of every group are neighbours.
        order = np.lexsort(columns[::-1]) if columns else np.arange(num_rows)
        rank = np.empty(num_rows, np.int64)
        rank[order] = np.arange(num_rows)
        self._spans = [(int(rank[rows].min()), int(rank[rows].max()) + 1) for _, rows in groups]
        self._begin = [int(table.node_position[chain[0]]) for chain in self._chains]
        num_queries = np.diff(table.query_start).astype(np.int64)
        place = np.concatenate([np.zeros(1, np.int64), np.cumsum(num_queries[order])])
        self._rows = Rows(order, place, table.query_position[order].astype(np.int64), num_chain_nodes[order])
        self.order: Ints | None = None
        """[tokens] the packed token at each place of the plan; None where they stay as they are packed."""
        if (rank != np.arange(num_rows)).any():
            self.order = ragged_arange(table.query_start[order].astype(np.int64), num_queries[order])

    def rows(self, table: TableArrays) -> Rows:
        """The rows of this step, or of a later one in which only their positions have changed."""
        position = table.query_position[self._rows.row].astype(np.int64)
        return Rows(self._rows.row, self._rows.place, position, self._rows.num_chain_nodes)

    def levels(self, window: int | None, rows: Rows) -> list[list[Part]]:
        """The parts of each level; they show different query tokens."""
        if window is None:
            return self._whole_levels
        levels = [[self._in_window(index, window, rows) for index in level] for level in self._levels]
        return [parts for level in levels if (parts := [part for part in level if part is not None])]

    @cached_property
    def _whole_levels(self) -> list[list[Part]]:
        return [self._whole(level) for level in self._levels]

    def _whole(self, level: list[int]) -> list[Part]:
        """What the groups of a level read where no window hides anything."""
        chains = [self._chains[index] for index in level]
        place = self._rows.place[np.array([self._spans[index] for index in level])]
        runs = [self._keys.run_of(chain) for chain in chains]
        nodes = np.array([node for chain, run in zip(chains, runs) if run is None for node in chain], np.int64)
        num_keys = np.array([self._keys.length[chain].sum() for chain in chains])
        num_listed = np.where([run is None for run in runs], num_keys, 0)
        tiles = Tiles(
            place=place[:, 0],
            num_queries=place[:, 1] - place[:, 0],
            num_keys=num_keys,
            slot=np.array([-1 if run is None else run for run in runs]),
            listed_from=np.cumsum(num_listed) - num_listed,
            listed=self._keys.slots(nodes, self._keys.length[nodes]),
            causal=False,
        )
        return tiles.parts(self._costs)

    def _in_window(self, index: int, window: int, rows: Rows) -> Part | None:
        """What a group reads through a sliding window; None where that has left the group's keys behind."""
        chain, (low, high) = self._chains[index], self._spans[index]
        num_keys = int(self._keys.length[chain].sum())
        positions = ragged_arange(rows.position[low:high], np.diff(rows.place[low : high + 1]))
        newest = positions - self._begin[index]  # as if the keys went on up to the query
        sees = np.flatnonzero(newest - window < num_keys - 1)
        if len(sees) == 0:
            return None
        newest = newest[sees[0] : sees[-1] + 1]
        skipped = max(0, int(newest.min()) - window + 1)
        first_slot = self._keys.run_of(chain)
        slots: Run | Ints
        if first_slot is None:
            slots = self._keys.slots(np.array(chain), self._keys.length[chain])[None, skipped:]
        else:
            slots = Run(first_slot + skipped)
        tokens = np.arange(len(newest))[None] + rows.place[low] + sees[0]
        return Part(tokens, num_keys - skipped, slots, newest[None] - skipped, window).without_idle_mask()
