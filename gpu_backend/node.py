"""A node of the prefix tree: a run of tokens, and the KV blocks that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .sequence import Sequence

Tokens = npt.NDArray[np.int32]


class Node:
    """A run of tokens at a fixed position, and the KV slots that hold them.

    Token `j` lies in slot `(offset + j) % block_size` of block `blocks[(offset + j) // block_size]`.
    """

    __slots__ = (
        "_block_array",
        "_path",
        "blocks",
        "children",
        "claimed",
        "claims",
        "length",
        "longest",
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
        self.waiting: dict[Sequence, None] = {}  # requests that wait and end here
        self.longest = 0  # the class of the longest output that requests have waited for below: see `PrefixTree`
        self.waiting_children: dict[int, dict[Node, None]] = {}  # children with num_waiting > 0, by their `longest`
        self.blocks: list[int] = []  # empty until the first request that needs the node is admitted
        self.offset = 0
        self.num_computed = 0  # leading tokens whose KV is in the pool
        self.claims = False  # starts in the free slots of its parent's last block
        self.claimed = False  # the free slots of its own last block are taken by a child
        self._path: list[Node] | None = None
        self._block_array: npt.NDArray[np.int32] | None = None

    @property
    def end(self) -> int:
        """Position after the node's last token."""
        return self.position + self.length

    @property
    def capacity(self) -> int:
        """Tokens that the node may grow to."""
        return len(self.tokens)

    @property
    def num_running(self) -> int:
        """Admitted requests whose path includes this node."""
        return self.num_requests - self.num_waiting

    @property
    def num_own_blocks(self) -> int:
        """Blocks that are free when this node goes after its children: all but the one that its parent holds too."""
        return len(self.blocks) - self.claims

    def next_child(self) -> Node:
        """The child with waiting requests that comes first: the one with the longest output, of these the oldest."""
        return next(iter(self.waiting_children[max(self.waiting_children)]))

    def add_waiting_child(self, child: Node) -> None:
        """Put a child that has waiting requests in its place."""
        self.waiting_children.setdefault(child.longest, {})[child] = None

    def remove_waiting_child(self, child: Node) -> None:
        """Take it out again; its `longest` must be as it was."""
        alike = self.waiting_children[child.longest]
        del alike[child]
        if not alike:
            del self.waiting_children[child.longest]

    def path(self) -> list[Node]:
        """The nodes from the root's child down to this one; not to be changed."""
        if self._path is None:
            path = []
            node = self
            while node.parent is not None:
                path.append(node)
                node = node.parent
            path.reverse()
            self._path = path
        return self._path

    def forget_paths(self) -> None:
        """A node was put in above this one, or there is no use for its path any more."""
        stack = [self]
        while stack:
            node = stack.pop()
            node._path = None
            stack.extend(node.children.values())
            stack.extend(node.private_children)

    def block_array(self) -> npt.NDArray[np.int32]:
        """The blocks, as an array that is not to be changed."""
        array = self._block_array
        if array is None or len(array) != len(self.blocks):
            array = self._block_array = np.array(self.blocks, np.int32)
        return array

    def forget_blocks(self) -> None:
        """The blocks have become others; more behind the same ones need no call."""
        self._block_array = None

    def slots(self, count: int, block_size: int) -> list[int]:
        """The pool slots of the first `count` tokens."""
        places = range(self.offset, self.offset + count)
        return [self.blocks[place // block_size] * block_size + place % block_size for place in places]

    def __repr__(self) -> str:
        return f"Node(position={self.position}, length={self.length}, computed={self.num_computed})"
