"""Work lists cut from random steps: every query token meets each of its keys exactly once, however it is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_batches import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Node, Row, branching, build

from llmsql.gpu_backend.attention_work import LayerTiles, plan_work
from llmsql.gpu_backend.cascade import Costs, shared_groups
from llmsql.kernels import NodeTable
from llmsql.kernels.work_list import TileLimits


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_prompts=st.integers(1, 12),
    max_tokens=st.integers(1, 120),
    window=st.sampled_from([None, None, 1, 3, 10, 17]),
    tiles=st.sampled_from([(16, 16, 1), (16, 64, 3), (16, 128, 4), (2, 8, 2)]),
    processors=st.sampled_from([0, 1, 50]),
    min_segment_keys=st.integers(1, 9),
    costs=st.sampled_from([None, Costs(0, 0, 0, 1, 0), Costs(product=9, block=4, merge=1, read=1, gather=0)]),
)
def test_random_steps(seed, num_prompts, max_tokens, window, tiles, processors, min_segment_keys, costs):
    smallest, largest, group = tiles
    table = random_batch(seed, num_prompts, max_tokens).table
    groups = shared_groups(table, costs) if costs is not None else []
    layer = LayerTiles(2, group, TileLimits(smallest, largest), window)
    work = plan_work(table, groups, layer, processors=processors, min_segment_keys=min_segment_keys)
    arrays = NodeTable(**{name: torch.from_numpy(array) for name, array in vars(table).items()})
    work.check(arrays, group, window=window)
    assert all(launch.block_m <= largest for launch in work.launches)
    if processors == 0 and not groups:
        assert work.num_parts == 0
    if processors == 0:
        sizes = [
            work.items[first : first + count, 5] - work.items[first : first + count, 4]
            for first, count, _ in work.launches
        ]
        assert all((size.diff() <= 0).all() for size in sizes), "the longest come first"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: {"items": w.items + torch.tensor([0, 0, 0, 0, 0, 1, 0, 0])}, None),  # later keys are hidden anyway
        (lambda w: {"items": w.items - torch.tensor([0, 0, 0, 0, 0, 1, 0, 0])}, "token .* of row .* meets"),
        (lambda w: {"items": w.items + torch.tensor([0, 0, 0, 0, 1, 0, 0, 0])}, "token .* of row .* meets"),
        (lambda w: {"items": w.items[:-1]}, "launches"),
        (lambda w: {"entry_part": w.entry_part.flip(0)}, "part rows"),
        (lambda w: {"merge_start": w.merge_start + 1}, "parts"),
        (lambda w: {"launches": tuple(launch._replace(block_m=1) for launch in w.launches)}, "in a tile of 1"),
    ],
)
def test_check_names_what_is_wrong(spoil, message):
    case = branching(heads=2)
    work = case.work(levels=2)
    broken = replace(work, **spoil(work))
    if message is None:
        broken.check(case.table, 2)
        return
    with pytest.raises(AssertionError, match=message):
        broken.check(case.table, 2)


def test_keys_are_cut_only_where_programs_are_few():
    rows = 8
    case = build([Node(None, 600) for _ in range(rows)], [Row(i, 599, 1) for i in range(rows)], block_size=16)
    assert len(case.work(processors=4).items) == rows  # two programs for each processor
    cut = case.work(processors=40, min_segment_keys=100)
    assert len(cut.items) == rows * 6
    keys = cut.items[:, 5] - cut.items[:, 4]
    assert keys.sum() == rows * 600
    assert keys.min() == keys.max() == 100
    assert cut.num_parts == rows * 6
    # Not below the least number of keys, however idle the device.
    assert len(case.work(processors=4000, min_segment_keys=300).items) == rows * 2


def test_a_step_without_rows_or_tokens_has_no_programs():
    for rows in ([], [Row(0, 0, 0)]):
        work = build([Node(None, 3)], rows).work()
        assert work.launches == ()
        assert [len(work.items), work.num_parts, len(work.merge_token)] == [0, 0, 0]


def test_moving_keeps_everything():
    work = branching().work(levels=2)
    moved = work.to("cpu")
    assert (moved.launches, moved.num_parts) == (work.launches, work.num_parts)
    assert np.array_equal(moved.items.numpy(), work.items.numpy())
