"""The attention kernel's work list for one step, made in numpy from the node table and the groups that share nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmsql.kernels.work_list import ITEM_WIDTH, Launch, TileLimits, WorkList

from .batch import TableArrays, ragged_arange
from .cascade import Group, Ints

WIDE = 64
"""Rows of the tile of the second launch at least: wgmma takes no fewer, and each size is compiled by itself."""
MIN_SEGMENT_KEYS = 128
"""Where a run of keys is cut among several programs, each has at least so many."""
FULL = 2
"""A launch of this many programs per processor leaves none idle: its keys are not cut."""


@dataclass(frozen=True)
class LayerTiles:
    """What decides how a layer's attention is cut."""

    kv_heads: int
    group: int  # query heads per KV head
    limits: TileLimits
    window: int | None


def plan_work(
    table: TableArrays,
    groups: Sequence[Group],
    layer: LayerTiles,
    *,
    processors: int,
    min_segment_keys: int = MIN_SEGMENT_KEYS,
    keys_to_come: int = 0,
) -> WorkList:
    """Cut a step's attention into programs, on the CPU; O(query tokens + nodes on all paths).

    Each row's own keys, and each group's shared ones, are cut into blocks of query tokens. Blocks that fill the
    smallest tile at most go to one launch and all others to a second one, with the tile that fits them. Where a launch
    has too few programs for the device's `processors`, keys are cut too, into runs of about equal length; never where
    `processors` is 0.

    With `keys_to_come` the list also serves when so many keys have come behind each row's last, once its
    `entry_position` is brought up to date: the kernel goes by the node table for where a node's keys end.
    """
    units = _units(table, groups, keys_to_come)
    lanes = np.diff(units.start) * layer.group
    narrow = layer.limits.smallest
    power_of_two = 1 << int(lanes.max(initial=1) - 1).bit_length()
    wide = max(narrow, min(max(power_of_two, WIDE), layer.limits.largest))
    launches = []
    for block_m, chosen in ((narrow, (lanes > 0) & (lanes <= narrow)), (wide, lanes > narrow)):
        blocks = _cut_queries(units, np.flatnonzero(chosen), block_m // layer.group, layer.window, keys_to_come)
        launches.append((block_m, _cut_keys(blocks, layer.kv_heads, processors, min_segment_keys)))
    return _work_list(units, launches)


@dataclass(frozen=True)
class _Units:
    """Rows against the nodes of their own, then groups against those they share."""

    token: Ints  # packed query tokens of all units, one unit after the other
    position: Ints  # their absolute positions
    start: Ints  # [units + 1] where a unit's tokens begin
    keys: Ints  # [units, 4] path_begin, path_end, key_begin, key_end
    num_own: int  # tokens of the row units


@dataclass(frozen=True)
class _Blocks:
    """Query tokens `first` to `first + count` of the units, against `keys`."""

    first: Ints  # [blocks]
    count: Ints  # [blocks]
    keys: Ints  # [blocks, 4] path_begin, path_end, key_begin, key_end

    def take(self, index: npt.NDArray[np.generic]) -> _Blocks:
        return _Blocks(self.first[index], self.count[index], self.keys[index])


def _units(table: TableArrays, groups: Sequence[Group], keys_to_come: int) -> _Units:
    query_start, path_start = table.query_start.astype(np.int64), table.path_start.astype(np.int64)
    node_end = table.node_position.astype(np.int64) + table.node_len
    lengths = np.diff(query_start)
    position = ragged_arange(table.query_position.astype(np.int64), lengths)
    own_path, own_key = path_start[:-1].copy(), np.zeros(len(lengths), np.int64)
    tokens, counts, shared = [np.arange(len(position))], [lengths], []
    for chain, rows in groups:
        path = table.path_nodes[path_start[rows[0]] : path_start[rows[0] + 1]]
        begin = int(path_start[rows[0]] + np.flatnonzero(path == chain[0])[0])
        end = int(node_end[chain[-1]])
        shared.append((begin, begin + len(chain), int(table.node_position[chain[0]]), end))
        own_path[rows] += len(chain)
        own_key[rows] = np.maximum(own_key[rows], end)
        tokens.append(ragged_arange(query_start[rows], lengths[rows]))
        counts.append(np.array([len(tokens[-1])]))
    own_end = np.where(np.diff(path_start) > 0, node_end[table.path_nodes[path_start[1:] - 1]], 0)
    own = np.stack([own_path, path_start[1:], own_key, own_end + keys_to_come], axis=1)
    token = np.concatenate(tokens)
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    keys = np.concatenate([own, np.array(shared, np.int64).reshape(-1, 4)])
    return _Units(token, position[token], start, keys, len(position))


def _cut_queries(units: _Units, chosen: Ints, block_q: int, window: int | None, keys_to_come: int) -> _Blocks:
    """Blocks of `block_q` tokens at most, their keys narrowed to those that some token of the block sees."""
    lengths = units.start[chosen + 1] - units.start[chosen]
    num_blocks = -(-lengths // block_q)
    unit = np.repeat(chosen, num_blocks)
    first = units.start[unit] + ragged_arange(np.zeros(len(chosen), np.int64), num_blocks) * block_q
    count = np.minimum(units.start[unit + 1] - first, block_q)
    keys = units.keys[unit]
    if len(keys):
        bounds = np.stack([first, first + count], axis=1).reshape(-1)  # every other range lies between two blocks
        position = np.append(units.position, 0)
        keys[:, 3] = np.minimum(keys[:, 3], np.maximum.reduceat(position, bounds)[::2] + 1 + keys_to_come)
        if window is not None:
            keys[:, 2] = np.maximum(keys[:, 2], np.minimum.reduceat(position, bounds)[::2] - window + 1)
        keys[:, 2] = np.minimum(keys[:, 2], keys[:, 3])
    # A row's block is kept also where it meets no key, so that its tokens get zeros.
    return _Blocks(first, count, keys).take((keys[:, 3] > keys[:, 2]) | (first < units.num_own))


def _cut_keys(blocks: _Blocks, kv_heads: int, processors: int, min_segment_keys: int) -> _Blocks:
    """The same blocks, those with many keys cut into several where programs are too few; longest first."""
    keys = blocks.keys[:, 3] - blocks.keys[:, 2]
    if 0 < len(keys) * kv_heads < FULL * processors:
        segment = max(min_segment_keys, -(-int(keys.sum()) * kv_heads // (FULL * processors)))
        num_segments = np.maximum(1, -(-keys // segment))
        length = np.repeat(-(-keys // num_segments), num_segments)
        end = np.repeat(blocks.keys[:, 3], num_segments)
        blocks = blocks.take(np.repeat(np.arange(len(keys)), num_segments))
        blocks.keys[:, 2] += ragged_arange(np.zeros(len(keys), np.int64), num_segments) * length
        blocks.keys[:, 3] = np.minimum(blocks.keys[:, 2] + length, end)
        keys = blocks.keys[:, 3] - blocks.keys[:, 2]
    return blocks.take(np.argsort(-keys, kind="stable"))


def _work_list(units: _Units, launches: list[tuple[int, _Blocks]]) -> WorkList:
    ends = np.cumsum([len(blocks.count) for _, blocks in launches]).tolist()
    count = np.concatenate([blocks.count for _, blocks in launches])
    entries = ragged_arange(np.concatenate([blocks.first for _, blocks in launches]), count)
    items = np.zeros((len(count), ITEM_WIDTH), np.int32)
    items[:, 0] = np.cumsum(count) - count
    items[:, 1] = count
    items[:, 2:6] = np.concatenate([blocks.keys for _, blocks in launches])
    token = units.token[entries]
    uses = np.bincount(token)
    partial = np.flatnonzero(uses[token] > 1)
    part = np.full(len(token), -1, np.int64)
    part[partial[np.argsort(token[partial], kind="stable")]] = np.arange(len(partial))
    merge_token = np.flatnonzero(uses > 1)
    return WorkList(
        items=torch.from_numpy(items),
        entry_token=_int32(token),
        entry_position=_int32(units.position[entries]),
        entry_part=_int32(part),
        merge_token=_int32(merge_token),
        merge_start=_int32(np.concatenate([np.zeros(1, np.int64), np.cumsum(uses[merge_token])])),
        launches=tuple(
            Launch(end - len(blocks.count), len(blocks.count), block_m)
            for end, (block_m, blocks) in zip(ends, launches)
            if len(blocks.count)
        ),
        num_parts=len(partial),
    )


def _int32(values: Ints) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int32))
