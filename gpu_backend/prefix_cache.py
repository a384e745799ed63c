"""Which KV to give up when blocks are needed: that of nodes which no running request needs."""

from __future__ import annotations

from collections import OrderedDict

from .node import Node


class PrefixCache:
    """The idle nodes: they have KV, and no running request needs them. The order in which they are given up is kept.

    First those that no request needs at all, least recently used first; then those that waiting requests need, the one
    that will be needed last first. Children come before their parents among the former.
    """

    def __init__(self) -> None:
        self.num_blocks = 0  # free blocks that giving up all of them would make
        self.num_reused_tokens = 0  # of nodes that no request needed, until one came and was admitted
        self._unneeded: OrderedDict[Node, None] = OrderedDict()
        self._awaited: OrderedDict[Node, bool] = OrderedDict()  # True: no request needed the node before

    def __len__(self) -> int:
        return len(self._unneeded) + len(self._awaited)

    def __contains__(self, node: object) -> bool:
        return node in self._unneeded or node in self._awaited

    @property
    def num_unneeded(self) -> int:
        """Nodes that no request needs."""
        return len(self._unneeded)

    def leave_unneeded(self, node: Node) -> None:
        """Keep a node that the last request has left."""
        self.num_blocks += node.num_own_blocks
        self._unneeded[node] = None

    def leave_awaited(self, node: Node) -> None:
        """Keep a node that only waiting requests need now."""
        if node in self._unneeded:
            del self._unneeded[node]
            self._awaited[node] = True
        elif node not in self._awaited:
            self.num_blocks += node.num_own_blocks
            self._awaited[node] = False
            self._awaited.move_to_end(node, last=False)  # the walk over waiting requests stands near it

    def split(self, upper: Node, lower: Node) -> None:
        """`lower` has given its first part to the new node `upper`, which is idle if `lower` is."""
        if lower in self._unneeded:
            self._unneeded[upper] = None
        elif lower in self._awaited:
            self._awaited[upper] = self._awaited[lower]

    def take(self, node: Node) -> None:
        """A request that needs the node is admitted."""
        if node in self._awaited:
            self.num_blocks -= node.num_own_blocks
            if self._awaited.pop(node):
                self.num_reused_tokens += node.num_computed

    def remove(self, node: Node) -> None:
        """The node's KV is about to be given up."""
        if node in self._unneeded:
            del self._unneeded[node]
        else:
            del self._awaited[node]
        self.num_blocks -= node.num_own_blocks

    def next_unneeded(self) -> Node | None:
        """The node to give up next among those that no request needs."""
        return next(iter(self._unneeded), None)

    def next_awaited(self) -> Node | None:
        """The node to give up next among those that waiting requests need."""
        return next(reversed(self._awaited), None)

    def check(self) -> None:
        """Assert that each idle node is where it belongs, and that the blocks are counted right."""
        seen: set[Node] = set()
        for node in self._unneeded:
            assert node.num_requests == 0, f"{node} is needed"
            assert not node.private, f"{node} belonged to one request"
            assert node.num_computed == node.length == node.capacity, f"{node} is cached without all of its KV"
            assert seen.issuperset(node.children.values()), f"{node} would be given up before its children"
            seen.add(node)
        for node in self._awaited:
            assert node.num_running == 0 < node.num_waiting, f"{node} is needed by other than waiting requests"
            assert node.blocks, f"{node} has nothing to give up"
        idle = [*self._unneeded, *self._awaited]
        assert len(set(idle)) == len(idle)
        assert self.num_blocks == sum(node.num_own_blocks for node in idle), "idle blocks are not counted right"
