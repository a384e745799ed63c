"""How a step's attention is cut into programs: which query tokens, which run of keys, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from .node_table import NodeTable

ITEM_FIELDS = ("entry_begin", "num_entries", "path_begin", "path_end", "key_begin", "key_end")
ITEM_WIDTH = 8
"""Numbers per item: the fields and two unused ones, so that an item is 32 bytes and its address aligned."""


class TileLimits(NamedTuple):
    """Rows of a program's tile (query tokens times the query heads that share a KV head)."""

    smallest: int
    largest: int


class Launch(NamedTuple):
    """Items that one kernel launch works on."""

    first_item: int
    num_items: int
    block_m: int  # rows of a program's tile: query tokens times the query heads that share a KV head


@dataclass(frozen=True)
class WorkList:
    """The programs of one step's attention for one KV head; every KV head has the same. All tensors are int32.

    An item holds up to `block_m // group` query tokens, of one row or of many, and a run of keys: those that stand on
    the nodes `path_nodes[path_begin:path_end]` of the node table at positions `key_begin` to `key_end`. Each of its
    tokens sees those of them that are not after it and not out of its window. So an item may be a block of a row
    (paged attention), a part of the keys of one (split-KV), or the rows of a group against the nodes that they share
    (the prefix pass of a cascade).

    Entry `e` is a query token of an item. Where a token has one item, `entry_part[e]` is -1 and its result goes to the
    output; otherwise the result and its log-sum-exp go to part row `entry_part[e]`, and the parts of
    `merge_token[i]`, rows `merge_start[i]` to `merge_start[i + 1]`, are merged.
    """

    items: torch.Tensor  # [items, ITEM_WIDTH] the fields of ITEM_FIELDS
    entry_token: torch.Tensor  # [entries] packed query tokens
    entry_position: torch.Tensor  # [entries] their absolute positions
    entry_part: torch.Tensor  # [entries] part row, or -1
    merge_token: torch.Tensor  # [tokens with more than one part]
    merge_start: torch.Tensor  # [tokens with more than one part, and one]
    launches: tuple[Launch, ...]
    num_parts: int

    def to(self, device: torch.device | str) -> WorkList:
        """The same list on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def check(self, table: NodeTable, group: int, *, window: int | None = None) -> None:
        """Assert that every query token meets each key it sees exactly once; for tests, O(queries times keys).

        Raises AssertionError naming the first item or token that is wrong.
        """
        covered = self._covered(table, group, window)
        starts, firsts = table.query_start.tolist(), table.query_position.tolist()
        for row in range(table.num_rows):
            for token in range(starts[row], starts[row + 1]):
                position = firsts[row] + token - starts[row]
                low = 0 if window is None else max(0, position - window + 1)
                nodes = table.path_nodes[table.path_start[row] : table.path_start[row + 1]].tolist()
                seen = covered.get(token, [])
                want = [(node, key) for node in nodes for key in _keys(table, node, low, position + 1)]
                assert sorted(seen) == sorted(want), f"token {token} of row {row} meets {seen}, not {want}"
        merged = self.merge_start.tolist()
        assert [merged[0], merged[-1]] == [0, self.num_parts], f"parts {merged} of {self.num_parts}"
        part_of: list[tuple[int, int]] = sorted(
            (part, token) for part, token in zip(self.entry_part.tolist(), self.entry_token.tolist()) if part >= 0
        )
        want_parts = [
            (part, token)
            for token, begin, end in zip(self.merge_token.tolist(), merged, merged[1:])
            for part in range(begin, end)
        ]
        assert part_of == want_parts, f"part rows {part_of}, merged are {want_parts}"

    def _covered(self, table: NodeTable, group: int, window: int | None) -> dict[int, list[tuple[int, int]]]:
        """(node, position) of every key that each token meets."""
        launched = [i for first, count, _ in self.launches for i in range(first, first + count)]
        assert launched == list(range(len(self.items))), f"launches {self.launches} for {len(self.items)} items"
        block_m = {i: block for first, count, block in self.launches for i in range(first, first + count)}
        covered: dict[int, list[tuple[int, int]]] = {}
        for item, (begin, count, path_begin, path_end, low, high, *_) in enumerate(self.items.tolist()):
            assert 0 < count * group <= block_m[item], f"item {item} has {count} tokens in a tile of {block_m[item]}"
            for entry in range(begin, begin + count):
                token, position = int(self.entry_token[entry]), int(self.entry_position[entry])
                lowest = low if window is None else max(low, position - window + 1)
                for node in table.path_nodes[path_begin:path_end].tolist():
                    keys = _keys(table, node, lowest, min(high, position + 1))
                    covered.setdefault(token, []).extend((node, key) for key in keys)
        return covered


TENSORS = ("items", "entry_token", "entry_position", "entry_part", "merge_token", "merge_start")
"""The fields that live on a device."""


def _keys(table: NodeTable, node: int, low: int, high: int) -> range:
    """Positions of the node's keys between `low` and `high`."""
    begin = int(table.node_position[node])
    return range(max(low, begin), min(high, begin + int(table.node_len[node])))
