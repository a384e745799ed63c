from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsql.gpu_backend.blocks import BlockPool


def test_fresh_blocks_are_contiguous() -> None:
    pool = BlockPool(8, 16)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(2) == [3, 4]
    assert (pool.num_free, pool.num_used) == (3, 5)


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.retain(block)
    pool.release(block)
    assert pool.num_free == 1
    pool.release(block)
    assert pool.num_free == 2
    pool.check()


def test_misuse_is_caught() -> None:
    pool = BlockPool(2, 4)
    with pytest.raises(AssertionError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    with pytest.raises(AssertionError, match="is free"):
        pool.retain(0)
    with pytest.raises(AssertionError, match="free already"):
        pool.release(0)
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0, 16)


@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from(["allocate", "retain", "release"]), st.integers(0, 99))))
def test_counts_follow_a_simple_model(num_blocks: int, actions: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks, 4)
    held: list[int] = []  # one entry per holder
    for action, number in actions:
        if action == "allocate":
            count = number % 4
            if count <= pool.num_free:
                fresh = pool.allocate(count)
                assert not set(fresh) & set(held)
                held += fresh
        elif held:
            block = held[number % len(held)]
            if action == "retain":
                pool.retain(block)
                held.append(block)
            else:
                pool.release(block)
                held.remove(block)
        pool.check()
        assert pool.num_used == len(set(held))
        assert all(pool.ref_count(block) == held.count(block) for block in range(num_blocks))
