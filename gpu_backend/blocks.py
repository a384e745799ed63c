"""The pool of KV blocks: who holds which, without knowing what is in them."""

from __future__ import annotations


class BlockPool:
    """Reference-counted blocks of `block_size` token slots each.

    A block is shared when a tree node is split in the middle of it, or when a node continues in the free slots of its
    parent's last block. Fresh blocks come out in ascending order as long as possible, so that most runs are contiguous.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of at least one slot, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one holder."""
        return self.num_blocks - len(self._free)

    def ref_count(self, block: int) -> int:
        """How many nodes hold `block`."""
        return self._ref_counts[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each held once by the caller."""
        assert count <= len(self._free), (
            f"{count} blocks asked for, {len(self._free)} free: admission must prevent this"
        )
        if count == 0:
            return []
        blocks = self._free[: -count - 1 : -1]
        del self._free[-count:]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def retain(self, block: int) -> None:
        """Add one holder to a block that is in use."""
        assert self._ref_counts[block] > 0, f"block {block} is free"
        self._ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Take one holder away; the block is free when none is left."""
        assert self._ref_counts[block] > 0, f"block {block} is free already"
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free.append(block)

    def check(self) -> None:
        """Assert that every block is either free with no holder, or held, and in the free list at most once."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        for block, count in enumerate(self._ref_counts):
            assert (count == 0) == (block in free), f"block {block} has {count} holders, free: {block in free}"
