"""The scheduler against a simulated device."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_device import LABELS, Device, make_scheduler, request

from llmsql.gpu_backend.sequence import Sequence


def test_a_shared_prefix_is_computed_once_in_one_step() -> None:
    scheduler = make_scheduler(max_tokens=1000)
    device = Device(scheduler)
    shared = list(range(50))
    for row in range(8):
        scheduler.add(request([*shared, 60 + row, 1, 2]))
    step = scheduler.schedule()
    assert step is not None
    assert [chunk.length for chunk in step.chunks] == [50] + [3] * 8
    assert len(step.prefilled) == 8
    device.run()
    assert device.prompt_tokens == 50 + 8 * 3
    assert len(device.finished) == 8


def test_without_in_step_sharing_others_wait_for_the_prefix() -> None:
    scheduler = make_scheduler(max_tokens=1000, share_in_step=False)
    for row in range(4):
        scheduler.add(request([1, 2, 3, 60 + row]))
    step = scheduler.schedule()
    assert step is not None
    assert len(step.prefilled) == 1
    device = Device(scheduler)
    device.run()
    assert device.prompt_tokens == 3 + 4


def test_decode_rows_come_before_prompt_chunks() -> None:
    scheduler = make_scheduler(max_tokens=4)
    device = Device(scheduler)
    scheduler.add(request([1, 2], max_tokens=10))
    device.step()
    scheduler.add(request([5] * 20))
    step = scheduler.schedule()
    assert step is not None
    assert [(chunk.length, bool(chunk.sequences)) for chunk in step.chunks] == [(1, True), (3, False)]


def test_equal_prompts_read_the_same_logits_and_a_late_one_repeats_one_token() -> None:
    scheduler = make_scheduler()
    device = Device(scheduler)
    for _ in range(3):
        scheduler.add(request([1, 2, 3]))
    device.step()
    assert device.prompt_tokens == 3
    scheduler.add(request([1, 2, 3]))
    device.run()
    assert device.prompt_tokens == 4
    assert len(device.finished) == 4


def test_labels_follow_their_prompt_in_the_same_step() -> None:
    scheduler = make_scheduler()
    device = Device(scheduler)
    scheduler.add(request([1, 2, 3], 0, LABELS))
    device.step()
    assert (device.prompt_tokens, device.label_tokens, len(device.finished)) == (3, 4, 1)


def test_a_row_that_just_fits_runs_and_one_token_more_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    device = Device(scheduler)
    fits, too_long = request([1] * 17, max_tokens=4), request([1] * 18, max_tokens=4)
    for one in (too_long, fits):
        scheduler.add(one)
    device.run()
    assert list(device.finished) == [fits]
    assert "needs 6 KV blocks of 4 tokens for 18 prompt tokens and 3 tokens of output" in device.rejected[too_long]
    assert "the whole pool has 5 (20 tokens)" in device.rejected[too_long]


def test_long_outputs_first_need_fewer_steps_and_share_as_much() -> None:
    requests = [([1] * 9 + [row, 5], 1) for row in range(400)] + [([2] * 9 + [row, 5], 40) for row in range(20)]
    steps, computed = {}, {}
    for longest_first in (True, False):
        scheduler = make_scheduler(
            num_blocks=2000, max_tokens=96, max_running=32, longest_first=longest_first, max_logits=1000
        )
        for prompt, max_tokens in requests:
            scheduler.add(request(prompt, max_tokens))
        device = Device(scheduler, checks=False)
        steps[longest_first] = sum(device.step() for _ in range(1000))
        computed[longest_first] = device.prompt_tokens
        assert len(device.finished) == len(requests)
    assert steps[True] < 0.85 * steps[False]
    assert computed[True] == computed[False] == 18 + 420 * 2


def test_a_dropped_step_can_be_scheduled_again() -> None:
    scheduler = make_scheduler()
    scheduler.add(request([1, 2, 3, 4]))
    lost = scheduler.schedule()
    again = scheduler.schedule()
    assert lost is not None
    assert again is not None
    assert [(c.node, c.start, c.length) for c in lost.chunks] == [(c.node, c.start, c.length) for c in again.chunks]
    Device(scheduler).run()


def test_forced_tokens_run_together_and_are_read_once() -> None:
    scheduler = make_scheduler(max_tokens=3)
    one = request([1, 2], max_tokens=10)
    scheduler.add(one)
    Device(scheduler).step()
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(step)
    scheduler.append(one, [11, 12, 13, 14])
    cut = scheduler.schedule()
    assert cut is not None
    assert [(chunk.length, chunk.generated, chunk.sequences) for chunk in cut.chunks] == [(3, True, [])]
    scheduler.commit(cut)
    rest = scheduler.schedule()
    assert rest is not None
    assert [(chunk.length, chunk.generated, chunk.sequences) for chunk in rest.chunks] == [(1, True, [one])]
    scheduler.check()


def test_misuse_is_caught() -> None:
    scheduler = make_scheduler()
    one = request([1], max_tokens=4)
    scheduler.add(one)
    with pytest.raises(AssertionError):
        scheduler.append(one, 5)
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(step)
    with pytest.raises(AssertionError, match="without new tokens"):
        scheduler.append(one, [])
    with pytest.raises(AssertionError, match="4 output tokens, room for 3"):
        scheduler.append(one, [5, 6, 7, 8])


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=14)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_batches_with_late_arrivals_and_cancellations(data: st.DataObject) -> None:
    block_size = data.draw(st.integers(1, 5), label="block_size")
    scheduler = make_scheduler(
        num_blocks=data.draw(st.integers(1, 40), label="num_blocks"),
        block_size=block_size,
        max_tokens=data.draw(st.integers(1, 20), label="max_tokens"),
        max_logits=data.draw(st.integers(1, 8), label="max_logits"),
        max_running=data.draw(st.integers(1, 10), label="max_running"),
        sharing=data.draw(st.booleans(), label="sharing"),
        share_in_step=data.draw(st.booleans(), label="share_in_step"),
        caching=data.draw(st.booleans(), label="caching"),
        exact_admission=data.draw(st.booleans(), label="exact_admission"),
    )
    device = Device(scheduler, max_forced=data.draw(st.integers(0, 4), label="max_forced"))
    added: list[Sequence] = []
    cancelled: set[Sequence] = set()
    for prompt in data.draw(PROMPTS, label="prompts"):
        max_tokens = data.draw(st.integers(0, 5))
        labels = LABELS if max_tokens == 0 and data.draw(st.booleans()) else ()
        added.append(request(prompt, max_tokens, labels))
        scheduler.add(added[-1])
        scheduler.check()
        for _ in range(data.draw(st.integers(0, 2))):
            device.step()
        alive = [one for one in added if one not in device.finished and one not in device.rejected.keys() | cancelled]
        if alive and data.draw(st.integers(0, 4)) == 0:
            victim = data.draw(st.sampled_from(alive))
            scheduler.remove(victim)
            cancelled.add(victim)
            scheduler.check()
    device.run()
    assert scheduler.tree.num_pinned_blocks == 0
    scheduler.tree.give_up_unneeded()
    pool = scheduler.tree.pool
    assert pool.num_used == 0
    for one in added:
        assert (one in device.finished) + (one in device.rejected) + (one in cancelled) == 1
        slots = len(one.token_ids) + max(one.max_tokens - 1, 0)
        if one not in cancelled and not one.labels:
            assert (one in device.rejected) == (slots > pool.num_blocks * block_size)
        if one in device.finished and not one.scores_only:
            assert device.finished[one] == one.max_tokens - 1


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_distinct_prompts_known_in_advance_are_computed_exactly_once(
    prompts: list[list[int]], max_tokens: int, max_logits: int, block_size: int, share_in_step: bool
) -> None:
    # End markers make the prompts distinct, so that no prompt ends inside another one.
    scheduler = make_scheduler(
        num_blocks=2000,
        block_size=block_size,
        max_tokens=max_tokens,
        max_logits=max_logits,
        share_in_step=share_in_step,
    )
    device = Device(scheduler)
    ended = [[*prompt, 1000 + row] for row, prompt in enumerate(prompts)]
    for row, prompt in enumerate(ended):
        scheduler.add(request(prompt, max_tokens=2 + row % 5))
    device.run()
    assert device.prompt_tokens == len({tuple(prompt[: i + 1]) for prompt in ended for i in range(len(prompt))})
