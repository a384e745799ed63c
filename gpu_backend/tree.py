"""The prefix tree of the batch: runs of tokens, who needs them, and where their KV lies.

Every prompt is a path from the root. A node lives exactly as long as a waiting or running request needs it, and its
KV is computed once for all of them. Generated tokens and choice labels are private nodes below the prompt's leaf.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .blocks import BlockPool

if TYPE_CHECKING:
    from .sequence import Sequence

Tokens = npt.NDArray[np.int32]


class Node:
    """A run of tokens at a fixed position, and the KV slots that hold them.

    Token `j` lies in slot `(offset + j) % block_size` of block `blocks[(offset + j) // block_size]`.
    """

    __slots__ = (
        "blocks",
        "children",
        "claimed",
        "claims",
        "length",
        "num_computed",
        "num_requests",
        "num_waiting",
        "offset",
        "parent",
        "position",
        "private",
        "private_children",
        "tokens",
        "waiting",
        "waiting_children",
    )

    def __init__(self, parent: Node | None, tokens: Tokens, length: int, *, private: bool) -> None:
        self.parent = parent
        self.tokens = tokens  # [capacity]; a tail's array is filled up to `length` as tokens are generated
        self.length = length
        self.position = 0 if parent is None else parent.end
        self.private = private  # belongs to one request and is not found by its tokens
        self.children: dict[int, Node] = {}  # shared children by first token
        self.private_children: dict[Node, None] = {}
        self.num_requests = 0  # waiting and running requests whose path includes this node
        self.num_waiting = 0  # those of them that wait
        self.waiting: deque[Sequence] = deque()  # requests that wait and end here
        self.waiting_children: dict[Node, None] = {}  # children with num_waiting > 0, in depth-first order
        self.blocks: list[int] = []  # empty until the first request that needs the node is admitted
        self.offset = 0
        self.num_computed = 0  # leading tokens whose KV is in the pool
        self.claims = False  # starts in the free slots of its parent's last block
        self.claimed = False  # the free slots of its own last block are taken by a child

    @property
    def end(self) -> int:
        """Position after the node's last token."""
        return self.position + self.length

    @property
    def capacity(self) -> int:
        """Tokens that the node may grow to; its blocks hold as many."""
        return len(self.tokens)

    def path(self) -> list[Node]:
        """The nodes from the root's child down to this one."""
        nodes = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def __repr__(self) -> str:
        return f"Node(position={self.position}, length={self.length}, computed={self.num_computed})"


class PrefixTree:
    """The requests of a batch as one tree over a pool of KV blocks.

    With `sharing=False` every request gets a path of its own: the baseline without any reuse.
    """

    def __init__(self, pool: BlockPool, *, sharing: bool = True) -> None:
        self.pool = pool
        self.sharing = sharing
        self.root = Node(None, np.empty(0, np.int32), 0, private=False)
        self._cursor = self.root  # where the depth-first walk over waiting requests stands; perhaps freed since

    @property
    def num_waiting(self) -> int:
        """Requests inserted and not yet started."""
        return self.root.num_waiting

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
        node.waiting.append(sequence)
        self._count(node, requests=1, waiting=1)

    def next_waiting(self) -> Sequence | None:
        """The waiting request that comes next depth-first, seen from the one started last; None if none waits."""
        node = self._cursor
        while node.num_waiting == 0:
            if node.parent is None:
                return None
            node = node.parent
        while not node.waiting:
            node = next(iter(node.waiting_children))
        return node.waiting[0]

    def visit(self, sequence: Sequence) -> None:
        """Let the depth-first walk go on from this waiting request."""
        self._cursor = sequence.leaf

    def start(self, sequence: Sequence) -> None:
        """Turn the waiting request, which must be first at its leaf, into a running one."""
        first = sequence.leaf.waiting.popleft()
        assert first is sequence, "requests that end at one node start in the order in which they came"
        self._count(sequence.leaf, waiting=-1)
        self._cursor = sequence.leaf

    def remove(self, sequence: Sequence, *, waiting: bool) -> None:
        """Take a finished or cancelled request out, and free what nobody needs any more."""
        for private in reversed(sequence.private_nodes()):
            self._free(private)
        leaf = sequence.leaf
        if waiting:
            leaf.waiting.remove(sequence)
        self._count(leaf, requests=-1, waiting=-1 if waiting else 0)
        node = leaf
        while node.num_requests == 0 and node.parent is not None:
            parent = node.parent
            self._free(node)
            node = parent

    def add_private(self, parent: Node, tokens: Tokens, length: int) -> Node:
        """A node for one running request only: its generated tokens, or a part of its choice labels."""
        node = self._add(parent, tokens, length, private=True)
        node.num_requests = 1
        return node

    # Blocks.

    def blocks_needed(self, nodes: Iterable[Node]) -> int:
        """Free blocks that `allocate(nodes)` will take."""
        return sum(count for _, _, count in self._placement(nodes))

    def allocate(self, nodes: Iterable[Node]) -> None:
        """Give each of the nodes (parents first) all of its blocks; those that have them are left as they are."""
        for node, offset, count in self._placement(nodes):
            parent = node.parent
            assert parent is not None
            node.offset = offset
            node.claims = offset > 0
            if node.claims:
                parent.claimed = True
                self.pool.retain(parent.blocks[-1])
                node.blocks = [parent.blocks[-1], *self.pool.allocate(count)]
            else:
                node.blocks = self.pool.allocate(count)

    def drop_kv(self, keep: Iterable[Node] = ()) -> None:
        """Forget the KV of all nodes but `keep`; allowed only while no request runs."""
        kept = set(keep)
        for node in reversed(list(self.depth_first())):
            if node not in kept:
                self._release_blocks(node)

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
        holders: dict[int, int] = {}
        slots: set[int] = set()
        for node in [self.root, *self.depth_first()]:
            self._check_node(node)
            for block in node.blocks:
                holders[block] = holders.get(block, 0) + 1
            for slot in node_slots(node, node.capacity if node.blocks else 0, self.pool.block_size):
                assert slot not in slots, f"slot {slot} belongs to two nodes"
                slots.add(slot)
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
        assert set(node.waiting_children) == {child for child in children if child.num_waiting}
        assert node.num_requests >= sum(child.num_requests for child in shared) + len(node.waiting)
        assert 0 <= node.num_computed <= node.length <= node.capacity
        if node.parent is None:
            return
        assert node.num_requests > 0, f"{node} is kept though no request needs it"
        assert node.capacity > 0, f"{node} is empty"
        if node.num_computed > 0:
            assert node.blocks, f"{node} has KV but no blocks"
            assert node.parent.num_computed == node.parent.length, f"{node} is computed before its parent"
        if node.blocks:
            assert node.parent.parent is None or node.parent.blocks, f"{node} has blocks, its parent has none"
            assert len(node.blocks) == -(-(node.offset + node.capacity) // self.pool.block_size)
            assert node.claims == (node.offset > 0)
            assert not node.claims or node.blocks[0] == node.parent.blocks[-1]
            assert node.claimed == any(child.claims for child in children)

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
        if lower.num_waiting:
            upper.waiting_children[lower] = None
            del parent.waiting_children[lower]
            parent.waiting_children[upper] = None
        if lower.blocks:
            cut, inside = divmod(lower.offset + length, block_size)
            upper.blocks = lower.blocks[: cut + (inside > 0)]
            lower.blocks = lower.blocks[cut:]
            if inside:
                self.pool.retain(lower.blocks[0])
            upper.offset, lower.offset = lower.offset, inside
            upper.claims, lower.claims = lower.claims, inside > 0
            upper.claimed = inside > 0
        upper.num_computed = min(lower.num_computed, length)
        lower.num_computed -= upper.num_computed
        lower.parent, lower.tokens = upper, lower.tokens[length:]
        lower.length -= length
        lower.position += length
        return upper

    def _count(self, leaf: Node, *, requests: int = 0, waiting: int = 0) -> None:
        node: Node | None = leaf
        while node is not None:
            node.num_requests += requests
            node.num_waiting += waiting
            if waiting and node.parent is not None:
                if node.num_waiting == 0:
                    del node.parent.waiting_children[node]
                elif node.num_waiting == waiting:
                    node.parent.waiting_children[node] = None
            node = node.parent

    def _free(self, node: Node) -> None:
        assert not node.children, f"{node} is freed before its children"
        assert not node.private_children, f"{node} is freed before its children"
        parent = node.parent
        assert parent is not None
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
        node.claims = node.claimed = False

    def _placement(self, nodes: Iterable[Node]) -> list[tuple[Node, int, int]]:
        """For each node without blocks: its offset in the first block, and how many free blocks it takes.

        A node continues in its parent's last block when that has free slots which no other child has claimed.
        """
        block_size = self.pool.block_size
        filled: dict[Node, int] = {}  # slots taken in the last block of a node placed here; 0: none left to claim
        placement = []
        for node in nodes:
            if node.blocks:
                continue
            parent = node.parent
            assert parent is not None
            if parent in filled:
                offset = filled[parent]
            elif parent.blocks and not parent.claimed:
                offset = (parent.offset + parent.capacity) % block_size
            else:
                offset = 0
            filled[parent] = 0
            total = offset + node.capacity
            filled[node] = total % block_size
            placement.append((node, offset, -(-total // block_size) - (offset > 0)))
        return placement


def node_slots(node: Node, count: int, block_size: int) -> list[int]:
    """The pool slots of the node's first `count` tokens."""
    places = range(node.offset, node.offset + count)
    return [node.blocks[place // block_size] * block_size + place % block_size for place in places]


def _common_length(a: Tokens, b: Tokens) -> int:
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length
