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


def test_rows_grow_where_room_was_kept_for_them() -> None:
    pool = BlockPool(20, 16)
    first = pool.allocate(2, room=2)
    second = pool.allocate(2, room=2)
    assert (first, second) == ([0, 1], [4, 5])
    assert pool.allocate(1, after=1) == [2]
    assert pool.allocate(2, after=5) == [6, 7]
    assert pool.allocate(3) == [8, 9, 10], "what is kept is taken last"
    assert pool.allocate(1, after=2) == [3]
    pool.check()


def test_what_is_kept_is_free_all_the_same() -> None:
    pool = BlockPool(6, 16)
    pool.allocate(1, room=3)
    assert pool.num_free == 5
    assert pool.allocate(4) == [4, 5, 1, 2]
    assert pool.allocate(1, after=0) == [3]
    pool.check()


def test_room_behind_blocks_that_are_in_use_already() -> None:
    pool = BlockPool(8, 16)
    assert pool.allocate(2) == [0, 1]
    assert pool.allocate(0, after=1, room=2) == []
    assert pool.allocate(1) == [4]
    assert pool.allocate(2, after=1) == [2, 3]
    for block in range(5):
        pool.release(block)
    pool.check()
    assert pool.allocate(8) == list(range(8)), "runs that touch are one again"


def test_the_lowest_run_that_is_long_enough_is_used() -> None:
    pool = BlockPool(12, 16)
    pool.allocate(12)
    for block in (1, 4, 5, 8, 9, 10):
        pool.release(block)
    assert pool.allocate(2) == [4, 5]
    assert pool.allocate(3) == [8, 9, 10]
    assert pool.allocate(1) == [1]


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


@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(
            st.sampled_from(["allocate", "retain", "release"]),
            st.integers(0, 99),
            st.integers(0, 4),
            st.booleans(),
        )
    ),
)
def test_counts_follow_a_simple_model(num_blocks: int, actions: list[tuple[str, int, int, bool]]) -> None:
    pool = BlockPool(num_blocks, 4)
    held: list[int] = []  # one entry per holder
    for action, number, room, behind in actions:
        if action == "allocate":
            count = number % 4
            if count <= pool.num_free:
                after = held[number % len(held)] if behind and held else None
                fresh = pool.allocate(count, after=after, room=room)
                assert len(fresh) == count
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
