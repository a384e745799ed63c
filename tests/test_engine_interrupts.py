"""Ctrl-C at any place: the call that it hits ends, the books are whole, other calls go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from engine_models import tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request
from llmsql.gpu_backend.fair_lock import FairLock

PROMPTS = tree_prompts(12, seed=8)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Shells let what they run in the background ignore SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):  # the handler runs between two bytecodes
        pass


@pytest.mark.parametrize("place", ["insert", "allocate", "grow", "build", "forward", "commit", "append", "remove"])
def test_ctrl_c_in_every_part_of_a_step(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(tiny_model(), max_batch_tokens=64, block_size=4) as engine:
        scheduler = engine._scheduler
        owner: Any = {
            "insert": scheduler.tree,
            "allocate": scheduler.tree,
            "grow": scheduler.tree,
            "build": engine._batches,
            "forward": engine._runner,
        }.get(place, scheduler)
        other = engine.generate([Request(row, prompt, max_tokens=9) for row, prompt in enumerate(PROMPTS)])
        done = [next(other)]
        original, armed = getattr(owner, place), True

        def interrupted(*arguments: Any) -> Any:
            nonlocal armed
            if armed and place == "remove":
                original(*arguments)
            if armed:
                armed = False
                interrupt()
                if place == "remove":
                    return None
            return original(*arguments)

        monkeypatch.setattr(owner, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate([Request(row, prompt[::-1], max_tokens=9) for row, prompt in enumerate(PROMPTS)]))
        assert not armed
        engine.check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        done += list(other)
        assert len(done) == len(PROMPTS)
        for answer in done:
            assert list(answer.token_ids) == tiny_answer(PROMPTS[answer.id], 9)
        engine.check()
        engine.clear_cache()
        assert engine._pool.num_used == 0


def test_ctrl_c_is_not_lost_while_the_lock_is_waited_for() -> None:
    lock = FairLock()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    threading.Timer(0.1, interrupt).start()
    threading.Timer(0.3, leave.set).start()
    reached = False

    def work() -> None:
        nonlocal reached
        with lock:
            reached = True
            with lock.interruptible():
                raise AssertionError("it should have been delivered")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    thread.join(20)
    with lock:  # it was released
        pass


def test_a_handler_of_the_users_own_is_kept() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: got.append(number))
    try:
        lock = FairLock()
        with lock:
            interrupt()
            assert not got
        assert got == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_is_interrupted_ends() -> None:
    program = f"""
import sys, itertools
sys.path.insert(0, {os.path.dirname(__file__)!r})
from engine_models import tiny_model, tree_prompts
from llmsql.gpu_backend import Engine, Request
prompts = tree_prompts(12, seed=8)
engine = Engine(tiny_model())
requests = (Request(row, prompts[row % 12], max_tokens=20) for row in itertools.count())
try:
    for number, answer in enumerate(engine.generate(requests)):
        if number == 3:
            print("running", flush=True)
except KeyboardInterrupt:
    engine.check()
    engine.close()
    print("whole", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "running\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert output == "whole\n"
        assert process.returncode == 0
    finally:
        process.kill()
