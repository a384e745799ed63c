"""Bad requests, early ends, several threads: one request or one call fails, everything else goes on."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import generate_one, tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Completion, Engine, EngineError, Grammar, MemoryBudgetError, Request

PROMPTS = tree_prompts(12, seed=4)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(tiny_model(), max_batch_tokens=64) as engine:
        yield engine
        engine.check()


def answers(engine: Engine, requests: list[Any]) -> dict[object, Completion]:
    return {answer.id: answer for answer in engine.generate(requests)}


def is_idle(engine: Engine) -> bool:
    engine.check()
    engine.clear_cache()
    return engine._scheduler.num_running + engine._scheduler.num_waiting == 0 and engine._pool.num_used == 0


BAD = [
    (Request("bad", [], max_tokens=4), "the prompt has no tokens"),
    (Request("bad", [3, 200]), "token id 200 at index 1 is outside the model's vocabulary of 200"),
    (Request("bad", [3, -1]), "token id -1 at index 1"),
    (Request("bad", [3.5, 1.0]), "one row of integers"),
    (Request("bad", [[1, 2], [3, 4]]), "one row of integers"),
    (Request("bad", [2**70]), "one row of integers"),
    (Request("bad", [5] * 250, max_tokens=10), "250 tokens; with 10 max_tokens that is 260, and .* holds 256"),
    (Request("bad", [5] * 255, choices=[[1], [2, 3]]), "2 tokens of the longest choice"),
    (Request("bad", [5], max_tokens=0), "max_tokens must be at least 1"),
    (Request("bad", [5], temperature=-1.0), "temperature must be 0 or more"),
    (Request("bad", [5], temperature=float("nan")), "temperature must be 0 or more"),
    (Request("bad", [5], choices=[]), "the list of choices is empty"),
    (Request("bad", [5], choices=[[4], [4]]), "the same"),
    (Request("bad", [5], temperature="hot"), "wrong type"),  # type: ignore[arg-type]
    (Request("bad", [5], choices=7), "wrong type"),  # type: ignore[arg-type]
    (Request("bad", [5], choices=[[4, 999]]), "outside the vocabulary"),
    (Request("bad", [5], choices="Yes"), "must be a list"),
    (Request("bad", [5], choices=["Yes", "No"]), "need a tokenizer"),
    (Request("bad", [5], grammar="x"), "grammar must be a Grammar, .* got str"),  # type: ignore[arg-type]
    (Request("bad", [5], grammar=Grammar.regex("x")), "constrained output needs a tokenizer"),
    (Request("bad", [5], grammar=Grammar.regex("x"), choices=[[4]]), "grammar and choices cannot be combined"),
    (Request("bad", [5], grammar=Grammar.regex("x"), stop=["x"]), "grammar and stop cannot be combined"),
    (Request("bad", [5], grammar=Grammar.regex("x"), ignore_eos=True), "grammar and ignore_eos cannot be combined"),
    (Request("bad", [5], choices=[[4]], stop=["x"]), "choices and stop cannot be combined"),
    (Request("bad", [5], choices=[[4]], choice_scoring="best"), "'total' or 'mean', got 'best'"),  # type: ignore[arg-type]
    (Request("bad", [5], stop="x"), "stop must be a list of texts, got the single text 'x'"),
    (Request("bad", [5], stop=["x", ""]), "at least one character, got ''"),
    (Request("bad", [5], stop=[7]), "must be text of at least one character, got 7"),  # type: ignore[list-item]
    (Request("bad", [5], stop=["x"]), "stop texts need a tokenizer"),
    (Request("bad", [5], temperature=float("inf")), "and finite, got inf"),
    (Request("bad", [5], top_k=0), "top_k must be at least 1"),
    (Request("bad", [5], top_p=0.0), "top_p must be more than 0 and at most 1, got 0.0"),
    (Request("bad", [5], top_p=1.5), "top_p must be more than 0"),
    (Request("bad", [5], top_p=float("nan")), "top_p must be more than 0"),
    (Request("bad", [5], min_p=-0.1), "min_p must be between 0 and 1, got -0.1"),
    (Request("bad", [5], top_k="few"), "wrong type"),  # type: ignore[arg-type]
    (Request("bad", [5], seed="lucky"), "wrong type"),  # type: ignore[arg-type]
    (Request("bad", [5], max_tokens=2.5), "wrong type"),  # type: ignore[arg-type]
    (Request("bad", [5], choices=[[4.5], [3]]), "wrong type"),  # type: ignore[list-item]
    (Request("bad", [5], max_tokens=-3), "max_tokens must be at least 1, got -3"),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_request_fails_alone(engine: Engine, request_: Request, message: str) -> None:
    good = [Request(row, prompt, max_tokens=4) for row, prompt in enumerate(PROMPTS[:3])]
    done = answers(engine, [good[0], request_, *good[1:]])
    assert len(done) == 4
    bad = done.pop("bad")
    assert bad.finish_reason == "error"
    assert bad.error is not None
    assert re.search(message, bad.error)
    for row, answer in done.items():
        assert list(answer.token_ids) == tiny_answer(PROMPTS[row], 4)
    assert engine.stats.failed_requests == 1
    assert is_idle(engine)


def test_something_that_is_no_request(engine: Engine) -> None:
    (answer,) = engine.generate(["what?"])  # type: ignore[list-item]
    assert answer.error == "expected a Request, got str"


def test_prompts_as_lists_arrays_and_tensors(engine: Engine) -> None:
    ids = PROMPTS[0].tolist()
    kinds = [ids, tuple(ids), np.array(ids, np.int64), np.array(ids, np.uint16), torch.tensor(ids)]
    done = answers(engine, [Request(kind, prompt, max_tokens=3) for kind, prompt in enumerate(kinds)])
    assert len({answer.token_ids for answer in done.values()}) == 1
    assert done[0].error is None
    assert done[0].num_prompt_tokens == len(ids)


def test_no_requests(engine: Engine) -> None:
    assert list(engine.generate([])) == []


def test_a_request_too_large_for_the_kv_pool_fails_with_the_numbers() -> None:
    with Engine(tiny_model(), block_size=8, kv_memory=8 * 256 * 5) as engine:
        token_bytes = engine._runner.kv_bytes_per_token
        assert token_bytes == 256
        done = answers(engine, [Request("long", [5] * 60, max_tokens=8), Request("short", [5] * 20, max_tokens=8)])
    assert "9 KV blocks of 8 tokens for 60 prompt tokens and 7 tokens of output" in str(done["long"].error)
    assert "whole pool has 5 (40 tokens)" in str(done["long"].error)
    assert done["short"].error is None


@pytest.mark.parametrize(
    ("budget", "message"),
    [(100, "less than one block"), ("1 parsec", "cannot read"), (0, "positive"), ("900TiB", "more than the .* free")],
)
def test_a_budget_that_makes_no_sense(budget: object, message: str) -> None:
    with pytest.raises(MemoryBudgetError, match=message):
        Engine(tiny_model(), kv_memory=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["max_batch_tokens", "block_size", "max_running", "window"])
def test_a_switch_of_zero(switch: str) -> None:
    with pytest.raises(EngineError, match=f"{switch} must be at least 1, got 0"):
        Engine(tiny_model(), **{switch: 0})


def test_nan_fails_its_own_request_only() -> None:
    import copy

    model = copy.deepcopy(tiny_model())
    with torch.no_grad():
        model.get_input_embeddings().weight[150] = float("nan")
    with Engine(model) as engine:
        poisoned = [Request("text", [9, 150, 10], max_tokens=4), Request("choice", [9, 150], choices=[[3], [4]])]
        done = answers(engine, [*poisoned, Request("clean", [9, 10, 11], max_tokens=4)])
        assert done["text"].error == done["choice"].error == "the model's logits are NaN for this prompt"
        assert list(done["clean"].token_ids) == tiny_answer(np.array([9, 10, 11]), 4)
        assert is_idle(engine)


def test_the_input_is_read_lazily() -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request(taken, PROMPTS[taken % 12], max_tokens=2)

    with Engine(tiny_model(), window=16) as engine:
        results = engine.generate(endless())
        assert taken == 0
        for _ in range(40):
            next(results)
        assert 40 <= taken <= 40 + 2 * 16
        results.close()
        assert is_idle(engine)


def test_closing_early_cancels_what_is_left(engine: Engine) -> None:
    results = engine.generate(Request(row, prompt, max_tokens=30) for row, prompt in enumerate(PROMPTS * 3))
    next(results)
    assert not is_idle(engine)
    results.close()
    assert is_idle(engine)
    assert answers(engine, [Request(0, PROMPTS[0], max_tokens=2)])[0].error is None


def test_a_forgotten_iterator_frees_its_requests(engine: Engine) -> None:
    results = engine.generate(Request(row, prompt, max_tokens=30) for row, prompt in enumerate(PROMPTS))
    next(results)
    del results
    gc.collect()
    assert is_idle(engine)


def test_an_input_that_raises(engine: Engine) -> None:
    def broken() -> Iterator[Request]:
        yield Request(0, PROMPTS[0], max_tokens=2)
        raise KeyError("upstream")

    with pytest.raises(KeyError, match="upstream"):
        list(engine.generate(broken()))
    assert is_idle(engine)


def test_a_model_that_fails_in_a_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal instruction")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "forward", fail)
        with pytest.raises(EngineError, match=r"failed in a step of \d+ tokens: an illegal instruction"):
            list(engine.generate([Request(0, PROMPTS[0])]))
    assert is_idle(engine)
    assert answers(engine, [Request(0, PROMPTS[0], max_tokens=2)])[0].error is None


def test_an_interrupt_while_results_are_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = engine.generate([Request(row, prompt, max_tokens=20) for row, prompt in enumerate(PROMPTS)])
    next(other)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate([Request(0, PROMPTS[0])]))
    rest = list(other)
    assert len(rest) == len(PROMPTS) - 1
    assert is_idle(engine)


def test_a_closed_engine_says_so() -> None:
    engine = Engine(tiny_model())
    running = engine.generate([Request(row, prompt, max_tokens=30) for row, prompt in enumerate(PROMPTS)])
    next(running)
    engine.close()
    engine.close()
    for use in (lambda: next(running), lambda: engine.generate([])):
        with pytest.raises(EngineError, match="the engine is closed"):
            use()


def test_the_model_object_is_left_as_it_was() -> None:
    model = tiny_model("qwen2")
    before = generate_one(model, PROMPTS[0], 4)
    implementation = model.config._attn_implementation
    with Engine(model) as engine:
        assert engine._runner.model is not model
        assert engine._runner.model.model.norm.weight.data_ptr() == model.model.norm.weight.data_ptr()
    with Engine(model, dtype="bfloat16") as engine:
        assert answers(engine, [Request(0, PROMPTS[0], max_tokens=4)])[0].error is None
    assert model.config._attn_implementation == implementation
    assert model.dtype == torch.float32
    assert generate_one(model, PROMPTS[0], 4) == before


def test_threads_get_their_own_answers(engine: Engine) -> None:
    expected = [tiny_answer(prompt, 5) for prompt in PROMPTS]
    results: dict[int, dict[object, Completion]] = {}

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        requests = [Request(int(row), PROMPTS[row], max_tokens=5) for row in rng.permutation(len(PROMPTS))]
        results[number] = answers(engine, requests)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for number in range(4):
        assert [list(results[number][row].token_ids) for row in range(len(PROMPTS))] == expected
    assert is_idle(engine)


def test_a_caller_that_stops_reading_holds_up_nobody(engine: Engine) -> None:
    idle = engine.generate(Request(row, PROMPTS[row % 12], max_tokens=40) for row in range(200))
    next(idle)
    done = answers(engine, [Request(row, prompt, max_tokens=2) for row, prompt in enumerate(PROMPTS)])
    assert len(done) == len(PROMPTS)
    idle.close()


def test_a_small_batch_is_not_kept_out_by_an_endless_one() -> None:
    def endless() -> Iterator[Request]:
        row = 0
        while True:
            row += 1
            yield Request(row, [9] * 20 + [10 + row % 150, 8], max_tokens=3)

    stop = threading.Event()
    with Engine(tiny_model(), window=32, max_running=4) as engine:

        def work() -> None:
            for _ in engine.generate(endless()):
                if stop.is_set():
                    return

        thread = threading.Thread(target=work)
        thread.start()
        try:
            done = answers(engine, [Request(row, prompt, max_tokens=3) for row, prompt in enumerate(PROMPTS)])
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        assert len(done) == len(PROMPTS)


def test_one_batch_may_feed_another(engine: Engine) -> None:
    first = engine.generate(Request(row, prompt, max_tokens=3) for row, prompt in enumerate(PROMPTS))
    second = engine.generate(Request(done.id, [*PROMPTS[done.id], *done.token_ids], max_tokens=3) for done in first)
    joined = {done.id: done.token_ids for done in second}
    plain = answers(engine, [Request(row, prompt, max_tokens=6, ignore_eos=True) for row, prompt in enumerate(PROMPTS)])
    for row in range(len(PROMPTS)):
        if 7 not in plain[row].token_ids:
            assert joined[row] == plain[row].token_ids[3:]


def test_thousands_of_random_requests_leak_no_block() -> None:
    rng = np.random.default_rng(0)
    with Engine(tiny_model(), window=64, max_batch_tokens=256, kv_memory=256 * 16 * 20) as engine:
        for _ in range(10):
            requests = []
            for row in range(60):
                prompt = np.concatenate([PROMPTS[rng.integers(12)][: rng.integers(1, 30)], rng.integers(8, 200, 2)])
                choices = [[3, 4], [3, 5]] if rng.random() < 0.3 else None
                requests.append(Request(row, prompt, max_tokens=int(rng.integers(1, 6)), choices=choices))
            results = engine.generate(requests)
            for _ in range(rng.integers(1, 70)):
                if next(results, None) is None:
                    break
            results.close()
            assert is_idle(engine)
