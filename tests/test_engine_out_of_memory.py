"""A device that runs out of memory midway: smaller steps, then the requests that cannot run fail, and no others."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Completion, Engine, Request
from llmsql.gpu_backend.batch import StepBatch
from llmsql.gpu_backend.step_budget import StepBudget, is_out_of_memory

PROMPTS = tree_prompts(12, seed=7)
ERRORS: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "cuda": lambda: RuntimeError("CUDA error: out of memory"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "python": MemoryError,
}


def expected(max_tokens: int) -> list[list[int]]:
    return [tiny_answer(prompt, max_tokens) for prompt in PROMPTS]


def run(engine: Engine, max_tokens: int) -> dict[object, Completion]:
    requests = [Request(row, prompt, max_tokens=max_tokens) for row, prompt in enumerate(PROMPTS)]
    done = {answer.id: answer for answer in engine.generate(requests)}
    engine.check()
    engine.clear_cache()
    assert engine._pool.num_used == 0
    return done


def limit_steps(engine: Engine, fails: Callable[[StepBatch], bool], error: Callable[[], Exception]) -> list[int]:
    """Let the runner fail where `fails` says so; returns the sizes of all steps that are tried."""
    forward, tried = engine._runner.forward, []

    def limited(batch: StepBatch) -> torch.Tensor:
        tried.append(len(batch.token_ids))
        if fails(batch):
            raise error()
        return forward(batch)

    engine._runner.forward = limited  # type: ignore[method-assign]
    return tried


@pytest.mark.parametrize("kind", ERRORS)
def test_steps_are_halved_until_they_fit_and_all_finish(kind: str) -> None:
    with Engine(tiny_model(), max_batch_tokens=512) as engine:
        tried = limit_steps(engine, lambda batch: len(batch.token_ids) > 40, ERRORS[kind])
        done = run(engine, 6)
        assert [list(done[row].token_ids) for row in range(len(PROMPTS))] == expected(6)
        failed = [size for size in tried if size > 40]
        assert failed
        assert all(later <= earlier / 2 for earlier, later in pairwise(failed))
        assert engine.stats.steps == len(tried) - len(failed)


def test_a_request_that_cannot_run_fails_and_the_others_finish() -> None:
    def fails(batch: StepBatch) -> bool:
        return bool((batch.positions > 60).any())

    with Engine(tiny_model(), max_batch_tokens=512) as engine:
        limit_steps(engine, fails, ERRORS["cuda"])
        done = run(engine, 5)
        answers = expected(5)
        long = [
            row for row in range(len(PROMPTS)) if len(PROMPTS[row]) > 61 or len(PROMPTS[row]) + len(answers[row]) > 62
        ]
        assert 0 < len(long) < len(PROMPTS)
        for row in range(len(PROMPTS)):
            if row in long:
                assert "ran out of memory in a step of a single token: weights" in str(done[row].error)
            else:
                assert list(done[row].token_ids) == answers[row]


def test_a_device_without_any_memory_fails_every_request_and_may_recover() -> None:
    with Engine(tiny_model(), max_batch_tokens=64) as engine:
        broken = True
        limit_steps(engine, lambda _: broken, ERRORS["torch"])
        assert all(answer.error is not None for answer in run(engine, 3).values())
        broken = False
        assert all(answer.error is None for answer in run(engine, 3).values())


def test_memory_may_run_out_while_logits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(tiny_model(), max_batch_tokens=64) as engine:
        read, times = engine._read, 0

        def fail_once(*arguments: Any) -> None:
            nonlocal times
            times += 1
            if times == 3:
                raise ERRORS["torch"]()
            read(*arguments)

        monkeypatch.setattr(engine, "_read", fail_once)
        done = run(engine, 5)
        failed = [row for row, answer in done.items() if answer.error is not None]
        assert 0 < len(failed) < len(PROMPTS)
        assert all("out of memory" in str(done[row].error) for row in failed)


def test_the_budget_grows_again_but_not_at_once() -> None:
    budget = StepBudget(1000)
    assert budget.halve(900)
    assert budget.num_tokens == 450
    for _ in range(20):
        budget.went_well()
    assert budget.num_tokens == 450
    for _ in range(1000):
        budget.went_well()
    assert budget.num_tokens == 1000
    assert budget.halve(3)
    assert not budget.halve(1)
    assert budget.num_tokens == 1


def test_other_errors_are_not_taken_for_it() -> None:
    assert all(is_out_of_memory(make()) for make in ERRORS.values())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_concerned_requests_are_those_whose_tokens_run() -> None:
    with Engine(tiny_model(), max_batch_tokens=1) as engine:
        first = np.array([9, 10, 11])
        seen: list[list[object]] = []
        forward = engine._runner.forward
        scheduler, steps = engine._scheduler, []
        schedule = scheduler.schedule

        def remember(*arguments: Any) -> Any:
            steps.append(schedule(*arguments))
            return steps[-1]

        def look(batch: StepBatch) -> torch.Tensor:
            seen.append(sorted(one.payload.request.id for one in scheduler.concerned(steps[-1])))
            return forward(batch)

        scheduler.schedule = remember  # type: ignore[method-assign]
        engine._runner.forward = look  # type: ignore[method-assign]
        requests = [Request(0, first, max_tokens=1), Request(1, [*first, 12], max_tokens=1)]
        list(engine.generate(requests))
    assert seen == [[0], [0], [0], [1]]
