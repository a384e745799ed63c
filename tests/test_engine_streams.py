"""Several callers at once: each gets on, whatever the others' inputs and readers do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from engine_models import tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, EngineStats, Request

PROMPTS = tree_prompts(12, seed=9)
LIMIT = 60  # seconds until a test says that a thread is stuck


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(tiny_model(), max_batch_tokens=64, max_running=8, window=16) as engine:
        yield engine
        engine.check()
        engine.clear_cache()
        assert engine._pool.num_used == 0


def in_threads(*work: Callable[[], None]) -> None:
    """Run all of it at once; errors of the threads are raised here."""
    problems: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if problems:
        raise problems[0]


def expect(engine: Engine, prompts: list[np.ndarray], max_tokens: int = 4) -> None:
    requests = [Request(row, prompt, max_tokens=max_tokens) for row, prompt in enumerate(prompts)]
    done = {answer.id: list(answer.token_ids) for answer in engine.generate(requests)}
    assert done == {row: tiny_answer(prompt, max_tokens) for row, prompt in enumerate(prompts)}


def test_callers_with_different_prompts_take_turns(engine: Engine) -> None:
    answered = {"a": 0, "b": 0, "c": 0}

    def caller(name: str, first: int) -> Callable[[], None]:
        def work() -> None:
            results = engine.generate(Request(row, [first, 9, 20 + row % 150], max_tokens=6) for row in count())
            for answer in results:
                assert answer.error is None
                answered[name] += 1
                if all(number >= 20 for number in answered.values()):
                    return  # it goes on until all three have got something

        return work

    in_threads(caller("a", 50), caller("b", 60), caller("c", 70))


def test_an_input_that_blocks_stops_nobody_else(engine: Engine) -> None:
    waiting, release = threading.Event(), threading.Event()

    def slow() -> Iterator[Request]:
        for row in range(8):
            yield Request(row, PROMPTS[row], max_tokens=4)
        waiting.set()
        assert release.wait(LIMIT)
        yield from (Request(row, PROMPTS[row], max_tokens=4) for row in range(8, 12))

    def blocked() -> None:
        done = {answer.id: list(answer.token_ids) for answer in engine.generate(slow())}
        assert done == {row: tiny_answer(PROMPTS[row], 4) for row in range(12)}

    def other() -> None:
        try:
            assert waiting.wait(LIMIT)
            for _ in range(3):
                expect(engine, PROMPTS)
        finally:
            release.set()

    in_threads(blocked, other)


def test_a_reader_that_stops_holds_up_neither_others_nor_the_blocks_they_need() -> None:
    with Engine(tiny_model()) as probe:
        token_bytes = probe._runner.kv_bytes_per_token
    with Engine(tiny_model(), kv_memory=160 * token_bytes, max_batch_tokens=64, window=8) as engine:
        reading, release = threading.Event(), threading.Event()

        def slow() -> None:
            for answer in engine.generate(Request(row, PROMPTS[row % 12], max_tokens=4) for row in range(30)):
                assert answer.error is None
                reading.set()
                assert release.wait(LIMIT)

        def other() -> None:
            try:
                assert reading.wait(LIMIT)
                for _ in range(3):
                    expect(engine, PROMPTS[::-1])
            finally:
                release.set()

        in_threads(slow, other)
        engine.check()


def test_an_input_that_raises_fails_its_own_call_only(engine: Engine) -> None:
    def broken() -> Iterator[Request]:
        for row in range(20):
            yield Request(row, PROMPTS[row % 12], max_tokens=4)
        raise KeyError("upstream")

    def fails() -> None:
        for _ in range(4):
            with pytest.raises(KeyError, match="upstream"):
                list(engine.generate(broken()))

    def works() -> None:
        for _ in range(4):
            expect(engine, PROMPTS)

    in_threads(fails, works)


def test_an_engine_that_is_closed_ends_all_calls() -> None:
    engine = Engine(tiny_model(), max_batch_tokens=64)
    started = threading.Barrier(4, timeout=LIMIT)

    def endless() -> None:
        row = 0

        def requests() -> Iterator[Request]:
            nonlocal row
            while True:
                row += 1
                yield Request(row, PROMPTS[row % 12], max_tokens=4)

        results = engine.generate(requests())
        next(results)
        started.wait()
        with pytest.raises(Exception, match="the engine is closed"):
            for _ in results:
                pass

    def close() -> None:
        started.wait()
        engine.close()

    before = threading.active_count()
    in_threads(endless, endless, endless, close)
    assert threading.active_count() == before
    assert engine._scheduler.num_running + engine._scheduler.num_waiting == 0
    engine._scheduler.check()


def test_each_call_counts_its_own_tokens(engine: Engine) -> None:
    own = [EngineStats() for _ in range(3)]

    def caller(number: int) -> Callable[[], None]:
        def work() -> None:  # half of the prompts are shared by all three callers
            prompts = [*PROMPTS[:6], *([np.asarray([150 + number, *prompt]) for prompt in PROMPTS[6:]])]
            requests = [Request(row, prompt, max_tokens=3) for row, prompt in enumerate(prompts)]
            assert len(list(engine.generate(requests, stats=own[number]))) == len(prompts)
            assert own[number].prompt_tokens == sum(map(len, prompts))
            assert 0 < own[number].output_tokens <= 3 * len(prompts)

        return work

    in_threads(caller(0), caller(1), caller(2))
    for name in ("prompt_tokens", "computed_tokens", "output_tokens"):
        assert sum(getattr(stats, name) for stats in own) == getattr(engine.stats, name), name
    alone = EngineStats()
    list(engine.generate([Request(0, PROMPTS[0], max_tokens=3)], stats=alone))
    assert alone.computed_tokens <= 1 < alone.prompt_tokens  # its KV was kept
