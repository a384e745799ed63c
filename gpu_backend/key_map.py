"""Where the keys of a step's nodes lie in the KV pool, found from blocks without listing every slot."""

from __future__ import annotations

import numpy as np

from .batch import TableArrays, ragged_arange
from .cascade import Ints


class KeyMap:
    """The slots of nodes, and which nodes lie in one run of slots."""

    def __init__(self, table: TableArrays, block_size: int) -> None:
        self._block_size = block_size
        self._blocks = table.blocks.astype(np.int64)
        self._offset = table.node_offset.astype(np.int64)
        self._first_block = table.node_block_start[:-1].astype(np.int64)
        self.length = table.node_len.astype(np.int64)
        self.first_slot = self._blocks[self._first_block] * block_size + self._offset
        held = np.diff(table.node_block_start).astype(np.int64)
        used = np.maximum(1, -(-(self._offset + self.length) // block_size))
        breaks = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(self._blocks) != 1)])
        begin = breaks[self._first_block]
        self.is_run = breaks[self._first_block + used - 1] == begin
        self.room = held * block_size - self._offset - self.length  # tokens that may still follow in the node's blocks
        in_run = np.where(breaks[self._first_block + held - 1] == begin, held, used)
        self.run_room = in_run * block_size - self._offset - self.length  # of them, those that go on a run

    def slots(self, nodes: Ints, lengths: Ints) -> Ints:
        """The slots of the first `lengths` tokens of each of the nodes, one node after the other."""
        places = ragged_arange(self._offset[nodes], lengths)
        blocks = self._blocks[np.repeat(self._first_block[nodes], lengths) + places // self._block_size]
        slots: Ints = blocks * self._block_size + places % self._block_size
        return slots

    def run_of(self, chain: list[int]) -> int | None:
        """The first slot of a chain of nodes whose keys lie in one run; None where they do not."""
        first, length = self.first_slot[chain], self.length[chain]
        if self.is_run[chain].all() and (first[1:] == first[:-1] + length[:-1]).all():
            return int(first[0])
        return None
