"""What is read together and what is not: plans of attention, without torch."""

from __future__ import annotations

import numpy as np
import pytest
from attention_batches import BLOCK_SIZE, NUM_BLOCKS, random_batch, visible_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend.attention_part import Part, Run
from llmsql.gpu_backend.attention_plan import Plan, Planner
from llmsql.gpu_backend.batch import StepBatch, TableArrays, build_batch
from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.cascade import Costs, cpu_costs, shared_groups
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.tree import PrefixTree

FREE = Costs(product=0, block=0, merge=0, read=1, gather=1)
MODELS = {  # heads, KV heads, dimension of a head
    "23 M": (8, 2, 64),
    "135 M": (9, 3, 64),
    "0.5 B": (14, 2, 64),
    "8 B": (32, 8, 128),
}


def step_of(prompts: list[list[int]], *, decode_steps: int = 0, num_blocks: int = 500) -> StepBatch:
    """The step that computes all the prompts at once, or a later one."""
    scheduler = Scheduler(
        PrefixTree(BlockPool(num_blocks, BLOCK_SIZE)), max_tokens=100_000, max_logits=10_000, max_running=10_000
    )
    for prompt in prompts:
        scheduler.add(Sequence(np.array(prompt, np.int32), max_tokens=decode_steps + 4))
    for _ in range(decode_steps):
        step = scheduler.schedule()
        assert step is not None
        scheduler.commit(step)
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                scheduler.append(sequence, 9)
    step = scheduler.schedule()
    assert step is not None
    return build_batch(step, BLOCK_SIZE)


def seen_through(part: Part) -> list[tuple[int, int]]:
    """(place, slot) of every query and key that meet in a part; the repeats of padding are left out."""
    found = []
    for block, tokens in enumerate(part.tokens):
        if isinstance(part.slots, Run):
            slots = part.slots.first + block * part.slots.stride + np.arange(part.num_keys)
        else:
            slots = part.slots[block, : part.num_keys]
        met: dict[int, set[int]] = {}
        for number, place in enumerate(tokens.tolist()):
            key = np.arange(part.num_keys)
            visible = np.ones(part.num_keys, np.bool_)
            if part.newest is not None:
                newest = part.newest[min(block, len(part.newest) - 1)]
                last = newest[min(number, len(newest) - 1)]
                visible = key <= last
                if part.window is not None:
                    visible &= key > last - part.window
            seen = slots[visible].tolist()
            assert len(seen) == len(set(seen)), "a key is counted twice"
            assert met.setdefault(place, set(seen)) == set(seen), "a repeated query sees something else"
        found += [(place, slot) for place, slots_seen in met.items() for slot in slots_seen]
    return found


def check(plan: Plan, table: TableArrays, window: int | None) -> None:
    expected = visible_slots(table, window)
    order = np.arange(len(expected)) if plan.order is None else plan.order
    assert sorted(order.tolist()) == list(range(len(expected)))
    seen: list[list[int]] = [[] for _ in expected]
    own = [seen_through(part) for part in plan.own]
    assert {place for pairs in own for place, _ in pairs} == set(range(len(expected))), "a query has no own part"
    for part in [*plan.own, *(part for level in plan.levels for part in level)]:
        for place, slot in seen_through(part):
            seen[int(order[place])].append(slot)
    assert [sorted(slots) for slots in seen] == [sorted(slots) for slots in expected]
    for level in [plan.own, *plan.levels]:
        places = [np.unique(part.tokens) for part in level]
        assert len(np.unique(np.concatenate(places))) == sum(map(len, places)), "a level shows a query twice"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_prompts=st.integers(1, 14),
    max_tokens=st.integers(1, 120),
    window=st.sampled_from([None, 1, 3, 10, 17]),
    costs=st.builds(
        Costs,
        product=st.sampled_from([0, 1, 20, 1e9]),
        block=st.sampled_from([0, 5]),
        merge=st.sampled_from([0, 1]),
        read=st.just(1),
        gather=st.sampled_from([0.1, 1, 1000]),
    ),
)
def test_every_query_meets_each_of_its_keys_once(
    seed: int, num_prompts: int, max_tokens: int, window: int | None, costs: Costs
) -> None:
    table = random_batch(seed, num_prompts, max_tokens).table
    check(Planner(table, BLOCK_SIZE, costs=costs).plan(window), table, window)


def test_the_levels_of_a_tree_are_read_once_each() -> None:
    prompts = [[1] * 20 + [2 + row // 3] * 10 + [100 + row] * 4 for row in range(6)]
    table = step_of(prompts).table
    plan = Planner(table, BLOCK_SIZE, costs=FREE).plan()
    assert [[part.num_keys for part in level] for level in plan.levels] == [[20], [10]]
    assert [len(part.tokens) for part in plan.levels[1]] == [2], "both groups are blocks of one product"
    check(plan, table, None)


def test_a_node_that_does_not_pay_is_read_with_what_lies_below() -> None:
    prompts = [*([1] * 20 + [2] * 10 + [100 + row] * 4 for row in range(6)), [1] * 20 + [99] * 4]
    table = step_of(prompts, decode_steps=1).table
    # Reading the first 20 keys for the group of six and for the seventh row saves 20, reading 10 once for six saves 50.
    [(chain, rows)] = shared_groups(table, Costs(product=0, block=25, merge=0, read=1, gather=1))
    assert table.node_len[chain].tolist() == [20, 10]
    assert len(rows) == 6
    assert len(shared_groups(table, Costs(product=0, block=15, merge=0, read=1, gather=1))) == 2
    [(chain, rows)] = shared_groups(table, Costs(product=30, block=25, merge=0, read=1, gather=1))
    assert table.node_len[chain].tolist() == [20], "the six save 25, which is less than a product"
    assert len(rows) == 7
    check(Planner(table, BLOCK_SIZE, costs=Costs(0, 25, 0, 1, 1)).plan(), table, None)


def test_five_levels_deep() -> None:
    prompts = [[0] * 9]
    for level in range(1, 5):
        prompts = [[*prompt, *[10 * level + child] * 9] for prompt in prompts for child in range(2)]
    table = step_of([[*prompt, 100 + row] for row, prompt in enumerate(prompts)], decode_steps=2).table
    plan = Planner(table, BLOCK_SIZE, costs=FREE).plan()
    assert len(plan.levels) == 4  # two rows share the last but one; the leaves are rows
    assert [sum(len(part.tokens) for part in level) for level in plan.levels] == [1, 2, 4, 8]
    check(plan, table, None)
    collapsed = Planner(table, BLOCK_SIZE, costs=Costs(30, 5, 1, 1, 1)).plan()
    assert 0 < len(collapsed.levels) < 4, "what does not pay for itself is read with what lies below"
    check(collapsed, table, None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_cost_test_shares_long_prefixes_and_leaves_short_ones(model: str, itemsize: int) -> None:
    heads, kv_heads, dim = MODELS[model]
    costs = cpu_costs(heads=heads, kv_heads=kv_heads, key_dim=dim, value_dim=dim, itemsize=itemsize)

    def shares(rows: int, keys: int) -> bool:
        table = step_of([[1] * keys + [10 + row] for row in range(rows)], decode_steps=1, num_blocks=1_500).table
        return bool(shared_groups(table, costs))

    assert shares(64, 512)
    assert shares(8, 512)
    assert not shares(2, 8)
    assert not shares(1, 2000)
    least = [
        min((keys for keys in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if shares(rows, keys)), default=4096)
        for rows in (2, 8, 64)
    ]
    assert least == sorted(least, reverse=True), "more rows share shorter prefixes"


def test_no_sharing_costs_nothing() -> None:
    table = step_of([[row, *[5] * 40] for row in range(20)], decode_steps=2).table
    on = Planner(table, BLOCK_SIZE, costs=FREE).plan()
    off = Planner(table, BLOCK_SIZE, costs=FREE, cascade=False).plan()
    assert on.levels == off.levels == []
    assert on.order is None
    assert len(on.own) == len(off.own) == 1


def test_rows_at_even_distances_are_read_where_they_lie() -> None:
    table = step_of([[row, *[5] * 46] for row in range(20)], decode_steps=0).table
    [part] = Planner(table, BLOCK_SIZE, costs=Costs(10, 0, 0, 1, 1)).plan().own
    assert isinstance(part.slots, Run)
    assert part.tokens.shape == (20, 47)
    assert part.slots.stride == 51, "16 blocks of 3 hold 47 tokens, and one is kept for those to come"


def test_thousands_of_short_rows_below_one_prefix() -> None:
    table = step_of([[1] * 300 + [10 + row] * 3 for row in range(2_000)], num_blocks=8_000).table
    plan = Planner(table, BLOCK_SIZE, costs=cpu_costs(heads=8, kv_heads=2, key_dim=64, value_dim=64, itemsize=4)).plan()
    [[shared]] = plan.levels
    assert shared.num_keys == 300
    assert shared.tokens.size == 2_000 * 3
    assert len(plan.own) < 20


def test_there_is_room_in_the_pool_of_the_tests() -> None:
    assert random_batch(0, 14, 120).table.blocks.max() < NUM_BLOCKS
