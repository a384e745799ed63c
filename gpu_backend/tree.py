"""The prefix tree of the batch: runs of tokens, who needs them, and where their KV lies.

Every prompt is a path from the root, and the KV of a node is computed once for all requests that need it. Generated
tokens and choice labels are private nodes below the prompt's leaf. A node whose last request has gone stays as long as
nobody wants its blocks, so that later requests find its KV.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .blocks import BlockPool
from .node import Node, Tokens
from .prefix_cache import PrefixCache

if TYPE_CHECKING:
    from .sequence import Sequence


@dataclass(frozen=True)
class Placement:
    """Where a node without blocks would lie: its place in the first block, and the free blocks that it takes now."""

    node: Node
    offset: int  # above 0: in the free slots of its parent's last block
    num_blocks: int


class PrefixTree:
    """The requests of a batch as one tree over a pool of KV blocks.

    Waiting requests come depth first, and below one node the subtrees with the longest outputs first (`max_tokens`, in
    classes of powers of two): long outputs that begin late would run alone at the end, and prompts that come later fill
    the steps in which only a few rows decode. Subtrees that are alike come in the order of their arrival, as all do
    with `longest_first=False`.

    With `sharing=False` every request gets a path of its own: the baseline without any reuse. With `caching=False`
    a node goes with its last request. At most `max_cached_nodes` nodes outlive their requests.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        sharing: bool = True,
        caching: bool = True,
        longest_first: bool = True,
        max_cached_nodes: int = 16_384,
    ) -> None:
        self.pool = pool
        self.sharing = sharing
        self.caching = caching
        self.longest_first = longest_first
        self.max_cached_nodes = max_cached_nodes
        self.cache = PrefixCache()
        self.root = Node(None, np.empty(0, np.int32), 0, private=False)
        self.version = 0  # changes when a node with blocks is split, or KV is given up that waiting requests need
        self._cursor = self.root  # where the depth-first walk over waiting requests stands; perhaps freed since

    @property
    def num_waiting(self) -> int:
        """Requests inserted and not yet started."""
        return self.root.num_waiting

    @property
    def num_pinned_blocks(self) -> int:
        """Blocks that running requests need."""
        return self.pool.num_used - self.cache.num_blocks

    # Requests come, start, and go.

    def insert(self, sequence: Sequence) -> None:
        """Add a waiting request below the longest prefix that the tree has, and set `sequence.leaf`."""
        tokens = sequence.token_ids
        node, done = self.root, 0
        while self.sharing and done < len(tokens):
            child = node.children.get(int(tokens[done]))
            if child is None:
                break
            common = _common_length(child.tokens, tokens[done:])
            if common < child.length:
                child = self._split(child, common)
            node, done = child, done + common
        if done < len(tokens):
            node = self._add(node, tokens[done:], len(tokens) - done, private=not self.sharing)
        sequence.leaf = node
        node.waiting[sequence] = None
        longest = sequence.max_tokens.bit_length() if self.longest_first else 0
        self._count(node, requests=1, waiting=1, longest=longest)

    def next_waiting(self) -> Sequence | None:
        """The waiting request that comes next depth-first, seen from the one started last; None if none waits."""
        node = self._cursor
        while node.num_waiting == 0:
            if node.parent is None:
                return None
            node = node.parent
        while not node.waiting:
            node = node.next_child()
        return next(iter(node.waiting))

    def visit(self, sequence: Sequence) -> None:
        """Let the depth-first walk go on from this waiting request."""
        self._cursor = sequence.leaf

    def start(self, sequence: Sequence) -> None:
        """Turn the waiting request into a running one: the KV on its path is not given up any more."""
        del sequence.leaf.waiting[sequence]
        self._count(sequence.leaf, waiting=-1)
        self._cursor = sequence.leaf

    def remove(self, sequence: Sequence, *, waiting: bool) -> None:
        """Take a finished or cancelled request out, and free what nobody needs any more."""
        for private in reversed(sequence.private_nodes()):
            self._free(private)
        if waiting:
            del sequence.leaf.waiting[sequence]
        self._count(sequence.leaf, requests=-1, waiting=-1 if waiting else 0)
        while self.cache.num_unneeded > self.max_cached_nodes:
            self._give_up_unneeded()

    def add_private(self, parent: Node, tokens: Tokens, length: int) -> Node:
        """A node for one running request only: its generated tokens, or a part of its choice labels."""
        node = self._add(parent, tokens, length, private=True)
        node.num_requests = 1
        return node

    # Blocks.

    def placement(self, nodes: Iterable[Node]) -> list[Placement]:
        """Where `allocate(nodes)` will put those of the nodes (parents first) that have no blocks.

        A node continues in its parent's last block when that has free slots which no other child has claimed.
        """
        block_size = self.pool.block_size
        filled: dict[Node, int] = {}  # slots taken in the last block of a node placed here; 0: none left to claim
        places = []
        for node in nodes:
            if node.blocks:
                continue
            parent = node.parent
            assert parent is not None
            if parent in filled:
                offset = filled[parent]
            elif parent.blocks and not parent.claimed:
                offset = (parent.offset + parent.length) % block_size
            else:
                offset = 0
            filled[parent] = 0
            total = offset + node.length
            filled[node] = total % block_size
            places.append(Placement(node, offset, -(-total // block_size) - (offset > 0)))
        return places

    def allocate(self, nodes: Iterable[Node]) -> None:
        """Give each of the nodes (parents first), which running requests need, the blocks for the tokens it has."""
        nodes = list(nodes)
        self._make_free(sum(place.num_blocks for place in self.placement(nodes)))
        places = self.placement(nodes)
        for place, below in zip(places, [*places[1:], None]):
            node, parent = place.node, place.node.parent
            assert parent is not None
            node.offset = place.offset
            node.claims = place.offset > 0
            room = self._blocks_to_grow(node, place.offset) - place.num_blocks - node.claims
            if below is not None and below.node.parent is node:
                room += self._blocks_to_grow(below.node, below.offset) - (below.offset > 0)
            last = parent.blocks[-1] if parent.blocks else None
            node.blocks = self.pool.allocate(place.num_blocks, after=last, room=room)
            if node.claims:
                parent.claimed = True
                assert last is not None
                self.pool.retain(last)
                node.blocks.insert(0, last)

    def grow(self, tail: Node, length: int) -> None:
        """Give an allocated tail the blocks for its first `length` tokens."""
        count = -(-(tail.offset + length) // self.pool.block_size) - len(tail.blocks)
        if count > 0:
            self._make_free(count)
            room = self._blocks_to_grow(tail, tail.offset) - len(tail.blocks) - count
            before = tail.blocks or (tail.parent.blocks if tail.parent is not None else [])
            tail.blocks.extend(self.pool.allocate(count, after=before[-1] if before else None, room=room))

    def give_up_unneeded(self) -> None:
        """Forget the KV that no request needs."""
        while self.cache.num_unneeded:
            self._give_up_unneeded()

    def give_up_idle(self) -> None:
        """Forget the KV that no running request needs."""
        while self.cache:
            self._give_up_one()

    def depth_first(self) -> Iterator[Node]:
        """All nodes but the root, parents before children."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(reversed(node.private_children))
            stack.extend(reversed(node.children.values()))

    def check(self) -> None:
        """Assert every invariant of the tree, its counts, and its hold on the blocks."""
        self.pool.check()
        self.cache.check()
        holders: dict[int, int] = {}
        slots: set[int] = set()
        pinned = 0
        for node in [self.root, *self.depth_first()]:
            self._check_node(node)
            pinned += 0 if node in self.cache else node.num_own_blocks
            for block in node.blocks:
                holders[block] = holders.get(block, 0) + 1
            room = len(node.blocks) * self.pool.block_size - node.offset
            for slot in node.slots(min(node.length, room), self.pool.block_size):
                assert slot not in slots, f"slot {slot} belongs to two nodes"
                slots.add(slot)
        assert pinned == self.num_pinned_blocks, f"{pinned} blocks are needed, {self.num_pinned_blocks} counted"
        assert self.cache.num_unneeded <= self.max_cached_nodes
        for block in range(self.pool.num_blocks):
            assert holders.get(block, 0) == self.pool.ref_count(block), f"block {block} has leaked or lost a holder"

    def _check_node(self, node: Node) -> None:
        shared = list(node.children.values())
        children = [*shared, *node.private_children]
        assert all(key == child.tokens[0] for key, child in node.children.items())
        assert all(child.parent is node and child.position == node.end for child in children)
        assert all(child.private for child in node.private_children)
        assert not any(child.private for child in shared)
        assert node.num_waiting == len(node.waiting) + sum(child.num_waiting for child in children)
        waiting = [(longest, child) for longest, alike in node.waiting_children.items() for child in alike]
        assert len(waiting) == sum(child.num_waiting > 0 for child in children)
        assert all(
            child.parent is node and child.num_waiting and child.longest == longest for longest, child in waiting
        )
        assert all(child.longest <= node.longest for _, child in waiting) or node.parent is None
        assert node.num_requests >= sum(child.num_requests for child in shared) + len(node.waiting)
        assert 0 <= node.num_computed <= node.length <= node.capacity
        if node.parent is None:
            return
        assert node.num_requests > 0 or node in self.cache, f"{node} is kept though no request needs it"
        assert node.capacity > 0, f"{node} is empty"
        assert (node in self.cache) == (bool(node.blocks) and node.num_running == 0), f"{node} is idle or it is not"
        if node.num_computed > 0:
            assert node.parent.num_computed == node.parent.length, f"{node} is computed before its parent"
        if node.blocks:
            assert node.parent.parent is None or node.parent.blocks, f"{node} has blocks, its parent has none"
            held = len(node.blocks) * self.pool.block_size
            needed = node.num_computed if node.private else node.length  # a tail may have to wait before it grows
            assert node.offset + needed <= held < node.offset + node.capacity + self.pool.block_size
            assert node.claims == (node.offset > 0)
            assert not node.claims or node.blocks[0] == node.parent.blocks[-1]
            assert node.claimed == any(child.claims for child in children)
        else:
            assert node.num_computed == 0, f"{node} has KV but no blocks"

    # Below: how it is done.

    def _add(self, parent: Node, tokens: Tokens, length: int, *, private: bool) -> Node:
        node = Node(parent, tokens, length, private=private)
        if private:
            parent.private_children[node] = None
        else:
            parent.children[int(tokens[0])] = node
        return node

    def _split(self, lower: Node, length: int) -> Node:
        """Cut `lower` after `length` tokens and return the new node above it; leaves keep pointing at `lower`."""
        parent, block_size = lower.parent, self.pool.block_size
        assert parent is not None
        upper = self._add(parent, lower.tokens[:length], length, private=False)  # takes the place of `lower`
        upper.num_requests, upper.num_waiting = lower.num_requests, lower.num_waiting
        upper.children[int(lower.tokens[length])] = lower
        upper.longest = lower.longest
        if lower.num_waiting:
            upper.add_waiting_child(lower)
            parent.remove_waiting_child(lower)
            parent.add_waiting_child(upper)
        if lower.blocks:
            cut, inside = divmod(lower.offset + length, block_size)
            upper.blocks = lower.blocks[: cut + (inside > 0)]
            lower.blocks = lower.blocks[cut:]
            if inside:
                self.pool.retain(lower.blocks[0])
            upper.offset, lower.offset = lower.offset, inside
            upper.claims, lower.claims = lower.claims, inside > 0
            upper.claimed = inside > 0
            lower.forget_blocks()
            self.version += 1
        upper.num_computed = min(lower.num_computed, length)
        lower.num_computed -= upper.num_computed
        lower.forget_paths()
        lower.parent, lower.tokens = upper, lower.tokens[length:]
        lower.length -= length
        lower.position += length
        self.cache.split(upper, lower)
        return upper

    def _count(self, leaf: Node, *, requests: int = 0, waiting: int = 0, longest: int = 0) -> None:
        """Change the counts from the leaf up, and let nodes become idle, needed or free."""
        node = leaf
        while True:
            node.num_requests += requests
            node.num_waiting += waiting
            parent = node.parent
            if parent is None:
                return
            if waiting and node.num_waiting == 0:
                parent.remove_waiting_child(node)
            elif waiting > 0 and (node.num_waiting == 1 or longest > node.longest):
                if node.num_waiting > 1:
                    parent.remove_waiting_child(node)
                node.longest = longest
                parent.add_waiting_child(node)
            if node.num_requests == 0:
                self._leave(node)
            elif node.blocks:
                if node.num_requests == node.num_waiting:
                    self.cache.leave_awaited(node)
                elif waiting < 0:
                    self.cache.take(node)
            node = parent

    def _leave(self, node: Node) -> None:
        """The last request that needed the node is gone."""
        if not self.caching or node.private or node.num_computed == 0:
            self._free(node)
            return
        if node in self.cache:
            self.cache.remove(node)
        node.length = node.num_computed  # if it is not all of them, there is nothing below
        node.tokens = node.tokens[: node.length].copy()  # lets go of the prompt's array
        node.forget_paths()
        held = -(-(node.offset + node.length) // self.pool.block_size)
        for block in node.blocks[held:]:
            self.pool.release(block)
        del node.blocks[held:]
        self.cache.leave_unneeded(node)

    def _blocks_to_grow(self, node: Node, offset: int) -> int:
        """Blocks that the node lies in once it has all the tokens that it may ever have."""
        return -(-(offset + node.capacity) // self.pool.block_size)

    def _make_free(self, count: int) -> None:
        while self.pool.num_free < count:
            self._give_up_one()

    def _give_up_one(self) -> None:
        if self.cache.num_unneeded:
            self._give_up_unneeded()
            return
        top = self.cache.next_awaited()
        assert top is not None, "blocks are wanted that running requests need: admission must prevent this"
        idle, stack = [], [top]
        while stack:
            node = stack.pop()
            idle.append(node)
            stack.extend(child for child in node.children.values() if child.blocks)
        self.version += 1
        for node in reversed(idle):
            self.cache.remove(node)
            self._release_blocks(node)

    def _give_up_unneeded(self) -> None:
        node = self.cache.next_unneeded()
        assert node is not None
        self._free(node)

    def _free(self, node: Node) -> None:
        assert not node.children, f"{node} is freed before its children"
        assert not node.private_children, f"{node} is freed before its children"
        parent = node.parent
        assert parent is not None
        if node in self.cache:
            self.cache.remove(node)
        self._release_blocks(node)
        if node.private:
            del parent.private_children[node]
        else:
            del parent.children[int(node.tokens[0])]

    def _release_blocks(self, node: Node) -> None:
        for block in node.blocks:
            self.pool.release(block)
        if node.claims:
            assert node.parent is not None
            node.parent.claimed = False
        node.blocks, node.offset, node.num_computed = [], 0, 0
        node.forget_blocks()
        node.claims = node.claimed = False


def _common_length(a: Tokens, b: Tokens) -> int:
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length
