"""What each query token attends to, cut into matrix products: shared prefixes once per group, private tails batched.

Hydragen (Juravsky et al. 2024) and FlashInfer's cascade split the keys of a row in the same two parts. Here the groups
come from the batch's prefix tree, at any depth. Pure numpy: the plan is made once per step and window, for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batch import TableArrays, ragged_arange

Ints = npt.NDArray[np.int64]

MIN_SHARED_KEYS = 192
"""A node is worth a product of its own from (rows - 1) * tokens >= this many keys; below, each row reads it alone."""
TILE_QUERIES = 128
"""Long chunks are cut into tiles of this many queries, so that no mask grows with the square of a chunk."""
MAX_SCORES = 4_000_000
"""Query-key pairs of one batched product at most, so that masks stay small."""
MAX_KEYS = 65_536
"""Keys gathered for one batched product at most."""
PRODUCT_COST = 8_000
"""Overhead of one more batched product, in query-key pairs: padding up to this much is cheaper."""


@dataclass(frozen=True)
class SharedPart:
    """Query tokens of several rows against keys that all of them see: one matrix product per KV head."""

    queries: Ints  # [queries] packed token indices
    slots: Ints  # [keys]
    visible: npt.NDArray[np.bool_] | None  # [queries, keys]; None: all are


@dataclass(frozen=True)
class PrivatePart:
    """Rows of similar size against keys of their own, padded to one size. Every query sees at least its own key."""

    queries: Ints  # [rows, queries] packed token indices; padded by repeating a row's last one
    slots: Ints  # [rows, keys]; padded by repeating a row's last one
    visible: npt.NDArray[np.bool_] | None  # [rows, queries, keys]; None: all are


@dataclass(frozen=True)
class Plan:
    """Parts that together show every query each of its keys exactly once; every query is in one private part."""

    private: list[PrivatePart]
    shared: list[SharedPart]


class Planner:
    """Plans for one step; `plan` differs between layers only by their sliding window."""

    def __init__(self, table: TableArrays, block_size: int, *, cascade: bool = True) -> None:
        self.query_start = table.query_start.astype(np.int64)
        self.query_position = table.query_position.astype(np.int64)
        self.node_position = table.node_position.astype(np.int64)
        self.node_len = table.node_len.astype(np.int64)
        self.node_start = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.node_len)])  # into node_slots
        places = ragged_arange(table.node_offset.astype(np.int64), self.node_len)
        first_block = np.repeat(table.node_block_start[:-1], self.node_len)
        self.node_slots = table.blocks[first_block + places // block_size].astype(np.int64) * block_size
        self.node_slots += places % block_size
        self.path_start = table.path_start.astype(np.int64)
        self.path_nodes = table.path_nodes.astype(np.int64)
        self.path_lens = np.diff(self.path_start)
        self.path_rows = np.repeat(np.arange(len(self.path_lens)), self.path_lens)
        is_own = np.zeros(len(self.path_nodes), np.bool_)  # a row's last node holds its own tokens
        is_own[self.path_start[1:] - 1] = True
        readers = np.bincount(self.path_nodes[~is_own], minlength=len(self.node_len))
        self.is_shared = self._choose_shared(readers) if cascade else np.zeros(len(self.node_len), np.bool_)
        self.reads_shared = self.is_shared[self.path_nodes] & ~is_own  # [nodes of all paths]
        self.groups = self._group(readers)

    def plan(self, window: int | None = None) -> Plan:
        """The parts under a sliding window of `window` keys (None: no window)."""
        shared = [part for group in self.groups if (part := self._shared_part(*group, window)) is not None]
        return Plan(self._private_parts(window), shared)

    def _choose_shared(self, readers: Ints) -> npt.NDArray[np.bool_]:
        """Nodes worth a product of their own; with a node also its ancestors, so that private keys are a suffix."""
        chosen: npt.NDArray[np.bool_] = (readers >= 2) & ((readers - 1) * self.node_len >= MIN_SHARED_KEYS)
        parent = np.full(len(self.node_len), -1, np.int64)
        below = np.ones(len(self.path_nodes), np.bool_)
        below[self.path_start[:-1]] = False
        parent[self.path_nodes[below]] = self.path_nodes[np.flatnonzero(below) - 1]
        self.parent = parent
        for node in np.flatnonzero(chosen)[::-1].tolist():
            above = int(parent[node])
            while above >= 0 and not chosen[above]:
                chosen[above] = True
                above = int(parent[above])
        return chosen

    def _group(self, readers: Ints) -> list[tuple[list[int], Ints]]:
        """Chains of shared nodes with the same rows, and those rows."""
        chains: dict[int, list[int]] = {}  # first node of a chain -> its nodes
        first_of: dict[int, int] = {}
        for node in np.flatnonzero(self.is_shared).tolist():  # parents come before children
            above = int(self.parent[node])
            joins = above >= 0 and readers[above] == readers[node]
            first = first_of[node] = first_of[above] if joins else node
            chains.setdefault(first, []).append(node)
        pairs = np.flatnonzero(self.reads_shared)
        order = pairs[np.argsort(self.path_nodes[pairs], kind="stable")]
        rows_of_nodes, nodes = self.path_rows[order], self.path_nodes[order]
        groups = []
        for first, chain in chains.items():
            low, high = np.searchsorted(nodes, [first, first + 1])
            groups.append((chain, rows_of_nodes[low:high]))
        return groups

    def _shared_part(self, chain: list[int], rows: Ints, window: int | None) -> SharedPart | None:
        lengths = self.query_start[rows + 1] - self.query_start[rows]
        queries = ragged_arange(self.query_start[rows], lengths)
        keys = np.concatenate([np.arange(self.node_start[node], self.node_start[node + 1]) for node in chain])
        if window is None:
            return SharedPart(queries, self.node_slots[keys], None)
        positions = ragged_arange(self.query_position[rows], lengths)
        begin = int(self.node_position[chain[0]])
        reaches = positions - window + 1 < begin + len(keys)  # sees at least the last key
        queries, positions = queries[reaches], positions[reaches]
        if len(queries) == 0:
            return None
        skipped = max(0, int(positions.min()) - window + 1 - begin)
        key_positions = np.arange(begin + skipped, begin + len(keys))
        visible = None
        if int(positions.max()) - window + 1 > begin + skipped:
            visible = key_positions > positions[:, None] - window
        return SharedPart(queries, self.node_slots[keys[skipped:]], visible)

    def _private_parts(self, window: int | None) -> list[PrivatePart]:
        # Tiles: at most TILE_QUERIES queries of one row, against the row's keys up to the tile's last query.
        num_queries = np.diff(self.query_start)
        num_tiles = -(-num_queries // TILE_QUERIES)
        rows = np.repeat(np.arange(len(num_queries)), num_tiles)
        first = ragged_arange(np.zeros(len(num_tiles), np.int64), num_tiles) * TILE_QUERIES
        queries = np.minimum(num_queries[rows] - first, TILE_QUERIES)
        shared_keys = np.bincount(
            self.path_rows[self.reads_shared],
            weights=self.node_len[self.path_nodes[self.reads_shared]],
            minlength=len(num_queries),
        ).astype(np.int64)
        position = self.query_position[rows] + first
        begin = shared_keys[rows]  # position of the first private key
        if window is not None:
            begin = np.maximum(begin, position - window + 1)
        keys = position + queries - begin

        # Every row's private keys as one run of slots, in the order of positions.
        private = np.flatnonzero(~self.reads_shared)
        nodes = self.path_nodes[private]
        row_slots = self.node_slots[ragged_arange(self.node_start[nodes], self.node_len[nodes])]
        row_lens = np.bincount(self.path_rows[private], weights=self.node_len[nodes], minlength=len(num_queries))
        row_start = np.concatenate([np.zeros(1, np.int64), np.cumsum(row_lens.astype(np.int64))])
        slot_start = row_start[rows] + begin - shared_keys[rows]
        query_start = self.query_start[rows] + first

        parts = []
        for tiles in _buckets(queries, keys):
            size_q, size_k = int(queries[tiles].max()), int(keys[tiles].max())
            in_q = np.minimum(np.arange(size_q), queries[tiles, None] - 1)  # [tiles, size_q]
            key = np.arange(size_k)
            in_k = np.minimum(key, keys[tiles, None] - 1)  # [tiles, size_k]
            last = in_q + (position - begin)[tiles, None]  # index of each query's own key
            visible = key <= last[:, :, None]
            if window is not None:
                visible &= key > last[:, :, None] - window
            parts.append(
                PrivatePart(
                    query_start[tiles, None] + in_q,
                    row_slots[slot_start[tiles, None] + in_k],
                    None if visible.all() else visible,
                )
            )
        return parts


def _buckets(queries: Ints, keys: Ints) -> list[Ints]:
    """Group tiles of similar size, so that padding costs less than the products it saves."""
    order = np.lexsort((keys, np.ceil(np.log2(queries))))
    buckets: list[Ints] = []
    begin, exact, size_q, size_k = 0, 0, 0, 0
    for end, (num_q, num_k) in enumerate(zip(queries[order].tolist(), keys[order].tolist())):
        wider_q, wider_k = max(size_q, num_q), max(size_k, num_k)
        tiles = end - begin + 1
        padded = tiles * wider_q * wider_k
        too_large = padded > MAX_SCORES or tiles * wider_k > MAX_KEYS
        wasteful = padded > 1.25 * (exact + num_q * num_k) + PRODUCT_COST
        if end > begin and (too_large or wasteful):
            buckets.append(order[begin:end])
            begin, exact, wider_q, wider_k = end, 0, num_q, num_k
        exact += num_q * num_k
        size_q, size_k = wider_q, wider_k
    if len(order):
        buckets.append(order[begin:])
    return buckets
