"""Which nodes of a step's prefix tree are read once for all of their rows, by a cost test.

Attention over a set of keys is a pair (output, log-sum-exp), and the pairs of disjoint sets merge into one (Hydragen,
Juravsky et al. 2024; Ye et al., "Cascade Inference", 2024). So each row's path is cut into chains of nodes: one product
reads a chain for all rows below it, and the rest of the path every row reads by itself. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batch import TableArrays

Ints = npt.NDArray[np.int64]
Group = tuple[list[int], Ints]
"""A chain of shared nodes, from the top down, and the rows whose paths run through it."""

TILE_QUERIES = 128
"""Long chunks are cut into tiles of this many query tokens; each reads the row's own keys by itself."""


@dataclass(frozen=True)
class Costs:
    """What attention costs in one layer, all in the same unit (on the CPU: nanoseconds of one core)."""

    product: float
    """One more batched product: the calls that make it and merge its result, whatever their size."""
    block: float
    """One more block in a product."""
    merge: float
    """Merging the result of one query token."""
    read: float
    """Reading one key and its value, by one row, tile or group."""
    gather: float
    """Copying one key and its value to where a product can read them."""


def cpu_costs(*, heads: int, kv_heads: int, key_dim: int, value_dim: int, itemsize: int) -> Costs:
    """The costs of a layer on a CPU; `itemsize` is the bytes of one number in the KV pool."""
    kv_bytes = kv_heads * (key_dim + value_dim) * itemsize
    return Costs(
        product=PRODUCT_NS,
        block=kv_heads * BLOCK_NS,
        merge=heads * value_dim * MERGE_NS,
        read=kv_bytes * READ_NS,
        gather=kv_bytes * GATHER_NS,
    )


# Fitted to 280 decode steps of 2 to 64 rows with 8 to 512 shared tokens, in fp32 and bf16, with the heads of models of
# 23 M, 135 M, 0.5 B and 8 B parameters: `python benchmarks/attention.py` does it anew (one core of an AMD EPYC, torch
# 2.13). The prefix length from which sharing pays then comes out right within a factor of two in each of the 40 series.
PRODUCT_NS = 45_000
BLOCK_NS = 2_000  # one KV head
MERGE_NS = 1.4  # one number of the output
READ_NS = 0.11  # one byte of keys or values, copy included
GATHER_NS = 0.04  # of it, the copy


def shared_groups(table: TableArrays, costs: Costs) -> list[Group]:
    """Chains of nodes to be read once for all rows below them, a row's chains in the order of its path.

    Chains begin at the top: what a row reads by itself is the end of its path, its own node always included. From the
    leaves up, a node is chosen when reading it once for each of the `readers` below it (rows or tiles that read by
    themselves, and blocks chosen already) costs more than one more block, and all that are chosen at one depth must
    save a product, since they share one. Nodes that are not chosen are read with what lies below them.
    """
    path_start, path_nodes = table.path_start.astype(np.int64), table.path_nodes.astype(np.int64)
    path_lens = np.diff(path_start)
    if len(path_nodes) == len(path_lens):
        return []  # no row has a node above its own
    num_nodes = len(table.node_len)
    depth = np.arange(len(path_nodes)) - np.repeat(path_start[:-1], path_lens)
    above = np.ones(len(path_nodes), np.bool_)  # not the row's own node, which holds its query tokens
    above[path_start[1:] - 1] = False
    rows, nodes = np.repeat(np.arange(len(path_lens)), path_lens)[above], path_nodes[above]
    num_rows = np.bincount(nodes, minlength=num_nodes)
    if int(num_rows.max()) < 2:
        return []
    below = np.flatnonzero(depth > 0)
    parent = np.full(num_nodes, -1, np.int64)
    parent[path_nodes[below]] = path_nodes[below - 1]
    node_depth = np.zeros(num_nodes, np.int64)
    node_depth[path_nodes] = depth

    num_queries = np.diff(table.query_start).astype(np.int64)
    queries = np.bincount(nodes, weights=num_queries[rows], minlength=num_nodes)
    last = np.flatnonzero(path_lens > 1)  # these rows read the node above their own
    readers = np.bincount(
        path_nodes[path_start[1:][last] - 2], weights=-(-num_queries[last] // TILE_QUERIES), minlength=num_nodes
    )
    chosen = np.zeros(num_nodes, np.bool_)
    for level in range(int(node_depth.max()), -1, -1):
        at = np.flatnonzero((node_depth == level) & (num_rows > 0))
        saved = (readers[at] - 1) * table.node_len[at] * costs.read - costs.block - queries[at] * costs.merge
        saved[num_rows[at] < 2] = 0
        if saved[saved > 0].sum() >= costs.product:
            chosen[at] = saved > 0
        if level:
            readers += np.bincount(parent[at], weights=np.where(chosen[at], 1, readers[at]), minlength=num_nodes)
    return _chains(chosen, parent, rows, nodes)


def _chains(chosen: npt.NDArray[np.bool_], parent: Ints, rows: Ints, nodes: Ints) -> list[Group]:
    entries = np.flatnonzero(chosen[nodes])
    entries = entries[np.argsort(nodes[entries], kind="stable")]
    rows, nodes = rows[entries], nodes[entries]
    groups: list[Group] = []
    for node in np.flatnonzero(chosen).tolist():  # parents come before children
        chain = [node]
        while (upper := int(parent[chain[-1]])) >= 0 and not chosen[upper]:
            chain.append(upper)
        low, high = np.searchsorted(nodes, [node, node + 1])
        groups.append((chain[::-1], rows[low:high]))
    return groups
