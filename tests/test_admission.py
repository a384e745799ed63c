from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scheduler_device import LABELS, Device, make_scheduler, request

from llmsql.gpu_backend.forecast import Forecast
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import Sequence

SPECS = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.integers(0, 20)), min_size=1, max_size=10
)


def sequences(specs: list[tuple[list[int], int]]) -> list[Sequence]:
    return [request(prompt, output, LABELS if output == 0 else ()) for prompt, output in specs]


def highest_use(requests: list[Sequence], count: int, block_size: int) -> int:
    """Most blocks that rows need at one time when the first `count` start together in a pool without limit."""
    scheduler = make_scheduler(
        num_blocks=10_000, block_size=block_size, max_tokens=10_000, max_logits=10_000, max_running=count
    )
    for one in requests:
        scheduler.add(one)
    with most_blocks(scheduler) as highest:
        device = Device(scheduler, checks=False)
        device.step()
        run_to_the_end(device)
    return max(highest)


def run_to_the_end(device: Device) -> None:
    """All that runs, but nothing that waits."""
    device.scheduler.max_running = 0
    while device.scheduler.num_running:
        device.step()


@contextmanager
def most_blocks(scheduler: Scheduler) -> Iterator[list[int]]:
    """The blocks that running rows need, each time that they get some."""
    tree = scheduler.tree
    grow, allocate = tree.grow, tree.allocate
    counts: list[int] = []

    def counted(do: Callable[..., None], *arguments: Any) -> None:
        do(*arguments)
        counts.append(tree.num_pinned_blocks)

    tree.grow = lambda *arguments: counted(grow, *arguments)  # type: ignore[method-assign]
    tree.allocate = lambda *arguments: counted(allocate, *arguments)  # type: ignore[method-assign]
    yield counts
    tree.grow, tree.allocate = grow, allocate  # type: ignore[method-assign]


def test_a_row_starts_when_its_blocks_will_be_free_in_time() -> None:
    # Slots of the long row: 1 + 8. The short one needs 1 + 2, and is gone before the long one needs more than 4.
    for exact, expected in ((True, 2), (False, 1)):
        scheduler = make_scheduler(num_blocks=9, block_size=1, exact_admission=exact)
        for one in (request([1], max_tokens=9), request([2], max_tokens=3)):
            scheduler.add(one)
        device = Device(scheduler)
        device.step()
        assert scheduler.num_running == expected
        device.run()
        assert len(device.finished) == 2


@settings(max_examples=100, deadline=None)
@given(SPECS, st.integers(1, 5), st.integers(5, 60))
def test_a_request_is_refused_exactly_if_the_blocks_would_not_suffice(
    specs: list[tuple[list[int], int]], block_size: int, num_blocks: int
) -> None:
    scheduler = make_scheduler(num_blocks=num_blocks, block_size=block_size, max_tokens=10_000, max_logits=10_000)
    requests = sequences(specs)
    for one in requests:
        scheduler.add(one)
    step = scheduler.schedule()
    assume(step is not None and not step.rejected)
    count = scheduler.num_running
    assert highest_use(sequences(specs), count, block_size) <= num_blocks
    if scheduler.num_waiting:
        assert highest_use(sequences(specs), count + 1, block_size) > num_blocks


@settings(max_examples=100, deadline=None)
@given(SPECS, st.integers(1, 5), st.lists(st.integers(0, 4), min_size=10, max_size=10), st.integers(0, 12))
def test_the_forecast_of_rows_that_run_already_comes_true(
    specs: list[tuple[list[int], int]], block_size: int, pauses: list[int], more: int
) -> None:
    scheduler = make_scheduler(num_blocks=10_000, block_size=block_size, max_tokens=10_000, max_logits=10_000)
    device = Device(scheduler, checks=False)
    for one, pause in zip(sequences(specs), pauses):
        scheduler.add(one)
        for _ in range(pause):
            device.step()
    for _ in range(more):
        device.step()
    assume(scheduler._decoding and not scheduler._prefilling)
    forecast = Forecast(list(scheduler._decoding), prefill_rate=10_000, block_size=block_size)
    with most_blocks(scheduler) as counts:
        counts.append(scheduler.tree.num_pinned_blocks)
        run_to_the_end(device)
    assert int(forecast._in_use.max()) == max(counts)


@settings(max_examples=100, deadline=None)
@given(SPECS, st.data())
def test_rows_that_do_not_keep_pace_stand_still_but_all_come_to_their_end(
    specs: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    block_size = data.draw(st.integers(1, 4), label="block_size")
    scheduler = make_scheduler(
        num_blocks=data.draw(st.integers(1, 30), label="num_blocks"),
        block_size=block_size,
        max_tokens=data.draw(st.integers(1, 12), label="max_tokens"),
        max_logits=data.draw(st.integers(1, 6), label="max_logits"),
        caching=data.draw(st.booleans(), label="caching"),
    )
    device = Device(scheduler, max_forced=data.draw(st.integers(0, 6), label="max_forced"))
    requests = sequences(specs)
    for one in requests:
        scheduler.add(one)
    device.run()
    assert len(device.finished) + len(device.rejected) == len(requests)
    for one in device.finished:
        assert device.finished[one] == max(one.max_tokens - 1, 0)


def test_forced_tokens_may_make_a_row_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler(num_blocks=14, block_size=1, longest_first=False)
    granted: list[bool] = []
    grow = scheduler.admission.grow
    monkeypatch.setattr(scheduler.admission, "grow", lambda *arguments: granted.append(grow(*arguments)) or granted[-1])
    device = Device(scheduler)
    slow, fast = request([1], max_tokens=5), request([2], max_tokens=12)
    for one in (slow, fast):
        scheduler.add(one)
    device.step()
    assert scheduler.num_running == 2
    assert fast.tail is not None
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(step)
    scheduler.append(slow, 5)
    scheduler.append(fast, range(9))  # the grammar forces them: 11 slots now, where 3 were foreseen
    scheduler.check()
    assert all(granted)
    ahead = scheduler.schedule()
    assert ahead is not None
    assert [chunk.node for chunk in ahead.chunks] == [slow.tail]
    assert granted[-1] is False
    scheduler.check()
    device.checks = False  # it did not see the second step
    device.run()
    assert len(device.finished) == 2


def test_more_rows_run_at_once_than_with_whole_reservation() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.integers(1, 64, 150).tolist()
    steps, rows = {}, {}
    for exact in (True, False):
        scheduler = make_scheduler(num_blocks=128, max_tokens=256, exact_admission=exact)
        for row, output in enumerate(outputs):
            scheduler.add(request([*range(1000, 1016), row, 5, 5, 5], output))
        device = Device(scheduler, checks=False)
        running = []
        while device.step():
            running.append(scheduler.num_running)
        assert len(device.finished) == len(outputs)
        steps[exact], rows[exact] = len(running), float(np.mean(running))
    assert rows[True] > 1.3 * rows[False]
    assert steps[True] < 0.8 * steps[False]
