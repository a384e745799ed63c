from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.tree import Node, PrefixTree, node_slots

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12)


def sequence(tokens: list[int]) -> Sequence:
    return Sequence(np.array(tokens, np.int32), max_tokens=4)


def texts(tree: PrefixTree) -> list[list[int]]:
    return [node.tokens[: node.length].tolist() for node in tree.depth_first()]


def make(*prompts: list[int], sharing: bool = True) -> tuple[PrefixTree, list[Sequence]]:
    tree = PrefixTree(BlockPool(64, 4), sharing=sharing)
    sequences = [sequence(prompt) for prompt in prompts]
    for one in sequences:
        tree.insert(one)
        tree.check()
    return tree, sequences


def compute(tree: PrefixTree, leaf: Node) -> None:
    tree.allocate(leaf.path())
    for node in leaf.path():
        node.num_computed = node.length


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
    order = []
    while (head := tree.next_waiting()) is not None:
        tree.start(head)
        order.append(head.token_ids.tolist())
    assert order == [[1], [1, 1], [1, 2], [2, 1], [2, 1, 1], [2, 2]]
    tree.check()
    for one in sequences:
        tree.remove(one, waiting=False)
    tree.check()
    assert texts(tree) == []


def test_a_late_request_joins_the_subtree_that_is_being_served() -> None:
    tree, (first, _) = make([1, 1], [2, 1])
    tree.start(first)
    late = sequence([1, 2])
    tree.insert(late)
    assert tree.next_waiting() is late


def test_splitting_inside_a_block_shares_the_block_and_keeps_the_slots() -> None:
    tree, (first,) = make([1, 2, 3, 4, 5, 6])
    tree.start(first)
    compute(tree, first.leaf)
    before = node_slots(first.leaf, 6, 4)
    second = sequence([1, 2, 3, 9])
    tree.insert(second)
    tree.check()
    upper, lower = second.leaf.parent, first.leaf
    assert upper is lower.parent
    assert upper is not None
    assert (upper.length, upper.num_computed, lower.length, lower.num_computed) == (3, 3, 3, 3)
    assert node_slots(upper, 3, 4) + node_slots(lower, 3, 4) == before
    assert tree.pool.ref_count(upper.blocks[-1]) == 2
    tree.remove(first, waiting=False)
    tree.check()
    assert tree.pool.num_used == 1  # the prefix that the second request needs
    tree.remove(second, waiting=True)
    assert tree.pool.num_used == 0


def test_a_node_continues_in_its_parents_last_block_once() -> None:
    tree, (first, second, third) = make([1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [1, 2, 3])
    assert tree.blocks_needed([*third.leaf.path()]) == 1
    compute(tree, first.leaf)
    assert tree.pool.num_used == 2  # 3 + 2 tokens in blocks of 4, not 1 + 1 blocks and the rest lost
    compute(tree, second.leaf)
    assert second.leaf.blocks != first.leaf.blocks[:1]
    tree.check()
    tree.remove(first, waiting=True)
    fourth = sequence([1, 2, 3, 8])
    tree.insert(fourth)
    assert tree.blocks_needed(fourth.leaf.path()) == 0  # the slot is free again


def test_dropping_kv_keeps_the_path_that_is_named() -> None:
    tree, (first, second) = make([1, 2, 3, 4, 5], [1, 2, 6, 7])
    compute(tree, first.leaf)
    compute(tree, second.leaf)
    tree.drop_kv(keep=first.leaf.path())
    tree.check()
    assert first.leaf.num_computed == 3
    assert second.leaf.blocks == []
    tree.drop_kv()
    assert tree.pool.num_used == 0


@settings(max_examples=150, deadline=None)
@given(PROMPTS, st.integers(1, 5), st.data())
def test_any_order_of_arrivals_and_departures_keeps_the_invariants(
    prompts: list[list[int]], block_size: int, data: st.DataObject
) -> None:
    tree = PrefixTree(BlockPool(500, block_size))
    alive: list[Sequence] = []
    for prompt in prompts:
        one = sequence(prompt)
        tree.insert(one)
        alive.append(one)
        tree.check()
        if data.draw(st.booleans()):
            chosen = data.draw(st.sampled_from(alive))
            compute(tree, chosen.leaf)
        if data.draw(st.booleans()):
            tree.remove(alive.pop(data.draw(st.integers(0, len(alive) - 1))), waiting=True)
        tree.check()
        distinct = {tuple(one.token_ids[: i + 1]) for one in alive for i in range(len(one.token_ids))}
        assert sum(node.length for node in tree.depth_first()) == len(distinct)
        for one in alive:
            assert [t for node in one.leaf.path() for t in node.tokens.tolist()] == one.token_ids.tolist()
    for one in alive:
        tree.remove(one, waiting=True)
    tree.check()
    assert tree.pool.num_used == 0
    assert tree.root.num_requests == 0
