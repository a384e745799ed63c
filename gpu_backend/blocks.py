"""The pool of KV blocks: who holds which, without knowing what is in them."""

from __future__ import annotations

from bisect import bisect_left, insort


class BlockPool:
    """Reference-counted blocks of `block_size` token slots each.

    A block is shared when a tree node is split in the middle of it, or when a node continues in the free slots of its
    parent's last block. What is read together should lie together, for then it is read where it lies: blocks come from
    the lowest run of free ones that is long enough, and free blocks behind a row that will grow are kept for it as long
    as there are others.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of at least one slot, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks
        """Blocks that nobody holds, kept ones included."""
        self._ref_counts = [0] * num_blocks
        self._runs = {0: num_blocks}  # first block of each run of free ones -> its length
        self._run_of_end = {num_blocks: 0}  # one past its last block -> its first
        self._starts = [0]  # first blocks of the runs, ascending
        self._kept: dict[int, int] = {}  # a block in use -> how many free ones behind it are kept; oldest first

    @property
    def num_used(self) -> int:
        """Blocks with at least one holder."""
        return self.num_blocks - self.num_free

    def ref_count(self, block: int) -> int:
        """How many nodes hold `block`."""
        return self._ref_counts[block]

    def allocate(self, count: int, *, after: int | None = None, room: int = 0) -> list[int]:
        """Take `count` free blocks, each held once by the caller.

        They lie behind the block `after` where that is free, or else in one run where there is one. The next `room`
        blocks behind them are kept for `allocate(..., after=<the last of them>)`, if they are free.
        """
        assert count <= self.num_free, f"{count} blocks asked for, {self.num_free} free: admission must prevent this"
        if count == 0:
            if room and after is not None and after not in self._kept:
                self._keep(after, room)
            return []
        if after is not None and self._kept.get(after, 0) >= count:
            blocks = self._take_kept(after, count)
        else:
            blocks = self._take_free(count, after, room)
        for block in blocks:
            self._ref_counts[block] = 1
        self.num_free -= count
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
            self.num_free += 1
            self._give_up_kept(block)
            self._add(block, 1)

    def check(self) -> None:
        """Assert that each block is in use, or free and in one run or kept; and that no two runs touch."""
        free = [block for start in self._starts for block in range(start, start + self._runs[start])]
        kept = [block for last, count in self._kept.items() for block in range(last + 1, last + 1 + count)]
        assert sorted(self._runs) == self._starts
        assert {start + length: start for start, length in self._runs.items()} == self._run_of_end
        assert not set(self._runs) & set(self._run_of_end), "two runs that touch are one"
        assert len(free) + len(kept) == len({*free, *kept}) == self.num_free, "a block is free twice, or not counted"
        assert all(self._ref_counts[block] == 0 for block in [*free, *kept])
        assert sum(count > 0 for count in self._ref_counts) == self.num_used, "a block is neither free nor held"
        assert all(self._ref_counts[last] > 0 and count > 0 for last, count in self._kept.items())

    # Below: runs of free blocks.

    def _take_kept(self, after: int, count: int) -> list[int]:
        """Take blocks that are kept for the one before them: no run changes."""
        kept = self._kept.pop(after)
        if kept > count:
            self._kept[after + count] = kept - count
        return list(range(after + 1, after + 1 + count))

    def _take_free(self, count: int, after: int | None, room: int) -> list[int]:
        blocks: list[int] = []
        if after is not None:
            room = max(room, self._kept.get(after, 0) - count)
            self._give_up_kept(after)
            blocks = self._take(after + 1, min(count, self._runs.get(after + 1, 0)))
        while len(blocks) < count:
            if not self._starts:
                self._give_up_kept(next(iter(self._kept)))
            wanted = count - len(blocks)
            start = self._find(wanted + room)
            blocks += self._take(start, min(wanted, self._runs[start]))
        if room:
            self._keep(blocks[-1], room)
        return blocks

    def _find(self, length: int) -> int:
        """The lowest run that is so long, or the longest one."""
        for start in self._starts:
            if self._runs[start] >= length:
                return start
        return max(self._starts, key=lambda start: self._runs[start])

    def _take(self, start: int, count: int) -> list[int]:
        """Take the first blocks of a run."""
        if count == 0:
            return []
        length = self._runs.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        if count < length:
            self._runs[start + count] = length - count
            self._run_of_end[start + length] = start + count
            insort(self._starts, start + count)
        else:
            del self._run_of_end[start + length]
        return list(range(start, start + count))

    def _add(self, start: int, length: int) -> None:
        """Add free blocks, joined with the runs that they touch."""
        before = self._run_of_end.pop(start, None)
        behind = self._runs.pop(start + length, None)
        if behind is not None:
            del self._starts[bisect_left(self._starts, start + length)]
            length += behind
        if before is None:
            insort(self._starts, start)
        else:
            length += self._runs[before]
            start = before
        self._runs[start] = length
        self._run_of_end[start + length] = start

    def _keep(self, last: int, room: int) -> None:
        """Keep the free blocks behind `last` for whoever grows there, up to `room` of them."""
        count = len(self._take(last + 1, min(room, self._runs.get(last + 1, 0))))
        if count:
            self._kept[last] = count

    def _give_up_kept(self, last: int) -> None:
        count = self._kept.pop(last, 0)
        if count:
            self._add(last + 1, count)
