from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.node import Node
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.tree import PrefixTree

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12)


def sequence(tokens: list[int], max_tokens: int = 4) -> Sequence:
    return Sequence(np.array(tokens, np.int32), max_tokens=max_tokens)


def texts(tree: PrefixTree) -> list[list[int]]:
    return [node.tokens[: node.length].tolist() for node in tree.depth_first()]


def make(*prompts: list[int], num_blocks: int = 64, **switches: bool) -> tuple[PrefixTree, list[Sequence]]:
    tree = PrefixTree(BlockPool(num_blocks, 4), **switches)
    sequences = [sequence(prompt) for prompt in prompts]
    for one in sequences:
        tree.insert(one)
        tree.check()
    return tree, sequences


def run(tree: PrefixTree, one: Sequence) -> None:
    """Start a waiting request and compute its prompt."""
    tree.start(one)
    tree.allocate(one.leaf.path())
    for node in one.leaf.path():
        node.num_computed = node.length


def blocks_needed(tree: PrefixTree, leaf: Node) -> int:
    return sum(place.num_blocks for place in tree.placement(leaf.path()))


def test_prompts_split_where_they_differ() -> None:
    tree, (first, second, third) = make([1, 2, 3, 4], [1, 2, 5], [1, 2])
    assert texts(tree) == [[1, 2], [3, 4], [5]]
    assert third.leaf.num_requests == 3
    assert first.leaf.parent is second.leaf.parent is third.leaf
    assert (first.leaf.position, third.leaf.position) == (2, 0)


def test_without_sharing_every_prompt_has_its_own_path() -> None:
    tree, sequences = make([1, 2, 3], [1, 2, 3], sharing=False)
    assert texts(tree) == [[1, 2, 3], [1, 2, 3]]
    assert sequences[0].leaf is not sequences[1].leaf


def test_waiting_requests_come_depth_first_from_where_the_walk_stands() -> None:
    tree, sequences = make([1, 1], [2, 1], [1, 2], [2, 2], [1], [2, 1, 1])
    assert started(tree) == [[1], [1, 1], [1, 2], [2, 1], [2, 1, 1], [2, 2]]
    tree.check()
    for one in sequences:
        tree.remove(one, waiting=False)
    tree.check()
    assert texts(tree) == []


def started(tree: PrefixTree) -> list[list[int]]:
    order = []
    while (head := tree.next_waiting()) is not None:
        tree.start(head)
        order.append(head.token_ids.tolist())
    return order


def test_below_a_node_the_longest_outputs_come_first_and_siblings_stay_together() -> None:
    outputs = {(1, 1): 4, (2, 1): 9, (1, 2): 5, (2, 2): 1, (3, 1): 7, (2, 3): 100, (3, 2): 30}
    expected = {
        True: [[2, 3], [2, 1], [2, 2], [3, 2], [3, 1], [1, 1], [1, 2]],
        False: [[1, 1], [1, 2], [2, 1], [2, 2], [2, 3], [3, 1], [3, 2]],
    }
    for longest_first, order in expected.items():
        tree = PrefixTree(BlockPool(64, 4), longest_first=longest_first)
        for tokens, max_tokens in outputs.items():
            tree.insert(sequence(list(tokens), max_tokens))
            tree.check()
        assert started(tree) == order
        tree.check()


def test_a_late_request_joins_the_subtree_that_is_being_served() -> None:
    tree, (first, _) = make([1, 1], [2, 1])
    tree.start(first)
    late = sequence([1, 2])
    tree.insert(late)
    assert tree.next_waiting() is late


def test_splitting_inside_a_block_shares_the_block_and_keeps_the_slots() -> None:
    tree, (first,) = make([1, 2, 3, 4, 5, 6], caching=False)
    run(tree, first)
    before = first.leaf.slots(6, 4)
    second = sequence([1, 2, 3, 9])
    tree.insert(second)
    tree.check()
    upper, lower = second.leaf.parent, first.leaf
    assert upper is lower.parent
    assert upper is not None
    assert (upper.length, upper.num_computed, lower.length, lower.num_computed) == (3, 3, 3, 3)
    assert upper.slots(3, 4) + lower.slots(3, 4) == before
    assert tree.pool.ref_count(upper.blocks[-1]) == 2
    tree.remove(first, waiting=False)
    tree.check()
    assert tree.pool.num_used == 1  # the prefix that the second request needs
    assert tree.num_pinned_blocks == 0  # but it does not run yet
    tree.remove(second, waiting=True)
    assert tree.pool.num_used == 0


def test_a_node_continues_in_its_parents_last_block_once() -> None:
    tree, (first, second, third) = make([1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [1, 2, 3], caching=False)
    assert blocks_needed(tree, third.leaf) == 1
    run(tree, first)
    assert tree.pool.num_used == 2  # 3 + 2 tokens in blocks of 4, not 1 + 1 blocks and the rest lost
    run(tree, second)
    assert second.leaf.blocks != first.leaf.blocks[:1]
    tree.check()
    tree.remove(first, waiting=False)
    fourth = sequence([1, 2, 3, 8])
    tree.insert(fourth)
    assert blocks_needed(tree, fourth.leaf) == 0  # the slot is free again


def test_a_tail_gets_blocks_as_it_grows() -> None:
    tree, (first,) = make([1, 2, 3, 4, 5, 6])
    run(tree, first)
    first.tail = tree.add_private(first.leaf, np.empty(9, np.int32), 0)
    tree.allocate([first.tail])
    assert tree.pool.num_used == 2  # it starts in the two free slots of its prompt's last block
    for length, blocks in ((1, 2), (2, 2), (3, 3), (9, 4)):
        tree.grow(first.tail, length)
        first.tail.length = first.tail.num_computed = length
        tree.check()
        assert tree.pool.num_used == blocks


def test_kv_outlives_its_requests_until_blocks_are_wanted_oldest_first() -> None:
    tree, (first, second, third) = make([1, 1, 1, 1, 1], [1, 1, 2, 2], [3, 3], num_blocks=4)
    for one in (first, second, third):
        run(tree, one)
    assert tree.num_pinned_blocks == tree.pool.num_used == 4
    for one in (third, first, second):
        tree.remove(one, waiting=False)
        tree.check()
    assert (tree.num_pinned_blocks, tree.pool.num_used) == (0, 4)
    again = sequence([1, 1, 2, 2, 9, 9, 9])
    tree.insert(again)
    assert again.leaf.position == 4
    tree.check()
    run(tree, again)  # needs a block: the least recently used goes
    tree.check()
    assert texts(tree) == [[1, 1], [1, 1, 1], [2, 2], [9, 9, 9]]
    assert tree.cache.num_reused_tokens == 4
    tree.give_up_unneeded()
    tree.check()
    assert texts(tree) == [[1, 1], [2, 2], [9, 9, 9]]


def test_kv_for_waiting_requests_goes_when_running_ones_want_the_blocks_the_farthest_first() -> None:
    tree, old = make([1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3], num_blocks=3)
    for one in old:
        run(tree, one)
        tree.remove(one, waiting=False)
    waiting = [sequence([number] * 4) for number in (1, 2, 3)]
    for one in waiting:
        tree.insert(one)
    new = sequence([4, 4])
    tree.insert(new)
    run(tree, new)
    tree.check()
    assert [bool(one.leaf.blocks) for one in waiting] == [True, True, False]
    assert tree.cache.num_reused_tokens == 0
    run(tree, waiting[0])
    tree.check()
    assert tree.cache.num_reused_tokens == 4


def test_a_prompt_that_was_computed_in_part_stays_in_part() -> None:
    tree, (first,) = make([1, 2, 3, 4, 5, 6])
    tree.start(first)
    tree.allocate(first.leaf.path())
    first.leaf.num_computed = 3
    tree.remove(first, waiting=False)
    tree.check()
    assert texts(tree) == [[1, 2, 3]]
    assert tree.pool.num_used == 1


def test_the_number_of_cached_nodes_is_bounded() -> None:
    tree = PrefixTree(BlockPool(100, 4), max_cached_nodes=5)
    for number in range(20):
        one = sequence([number])
        tree.insert(one)
        run(tree, one)
        tree.remove(one, waiting=False)
        tree.check()
    assert texts(tree) == [[number] for number in range(15, 20)]


@settings(max_examples=200, deadline=None)
@given(PROMPTS, st.integers(1, 5), st.booleans(), st.integers(1, 8), st.data())
def test_any_order_of_arrivals_and_departures_keeps_the_invariants(
    prompts: list[list[int]], block_size: int, caching: bool, max_cached_nodes: int, data: st.DataObject
) -> None:
    tree = PrefixTree(BlockPool(500, block_size), caching=caching, max_cached_nodes=max_cached_nodes)
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    for prompt in prompts:
        one = sequence(prompt, data.draw(st.integers(1, 9)))
        tree.insert(one)
        waiting.append(one)
        tree.check()
        if data.draw(st.booleans()):
            running.append(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            run(tree, running[-1])
            tree.check()
        for alive in (waiting, running):
            if alive and data.draw(st.booleans()):
                tree.remove(alive.pop(data.draw(st.integers(0, len(alive) - 1))), waiting=alive is waiting)
                tree.check()
        if data.draw(st.integers(0, 5)) == 0:
            tree.give_up_idle()
            tree.check()
        distinct = {tuple(one.token_ids[: i + 1]) for one in waiting + running for i in range(len(one.token_ids))}
        needed = [node for node in tree.depth_first() if node.num_requests]
        assert sum(node.length for node in needed) == len(distinct)
        assert caching or len(needed) == len(list(tree.depth_first()))
        for one in waiting + running:
            assert [t for node in one.leaf.path() for t in node.tokens.tolist()] == one.token_ids.tolist()
    for one in waiting + running:
        tree.remove(one, waiting=one in waiting)
        tree.check()
    assert tree.root.num_requests == tree.num_pinned_blocks == 0
    tree.give_up_unneeded()
    assert tree.pool.num_used == 0
