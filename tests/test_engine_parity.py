"""Greedy tokens equal `transformers.generate` run on one prompt at a time, whatever the engine does to be fast."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_models import CONFIGS, distinct_prefixes, generate_one, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request, cascade, own_keys, tiles

MAX_TOKENS = 8
PROMPTS = tree_prompts()


@cache
def reference(family: str) -> list[list[int]]:
    return [generate_one(tiny_model(family), prompt, MAX_TOKENS) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _cascade_in_small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "PRODUCT_NS", 200)
    monkeypatch.setattr(cascade, "BLOCK_NS", 20)
    monkeypatch.setattr(own_keys, "TILE_QUERIES", 16)
    monkeypatch.setattr(tiles, "PADDING", 100)


def run(engine: Engine, order: np.ndarray | None = None) -> list[list[int]]:
    rows = range(len(PROMPTS)) if order is None else order.tolist()
    answers = {}
    for completion in engine.generate(Request(row, PROMPTS[row], max_tokens=MAX_TOKENS) for row in rows):
        assert completion.error is None
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 7 else "length")
        answers[completion.id] = list(completion.token_ids)
    engine.check()
    return [answers[row] for row in range(len(PROMPTS))]


def test_the_reference_is_worth_comparing_with() -> None:
    for family in CONFIGS:
        answers = reference(family)
        assert len(set(map(tuple, answers))) > len(PROMPTS) // 2, f"{family} says the same to everything"
    assert any(len(answer) < MAX_TOKENS for family in CONFIGS for answer in reference(family)), "none stops early"


SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "small steps": {"max_batch_tokens": 13, "block_size": 3},
    "rows read alone": {"cascade": False},
    "transformers' modules": {"fused": False, "max_batch_tokens": 40},
    "no sharing": {"prefix_sharing": False, "max_batch_tokens": 100, "block_size": 7},
}


@pytest.mark.parametrize("family", CONFIGS)
def test_tokens_equal_generate(family: str) -> None:
    for number, (name, switches) in enumerate(SWITCHES.items()):
        with Engine(tiny_model(family), **switches) as engine:
            order = np.random.default_rng(number).permutation(len(PROMPTS))
            assert run(engine, order) == reference(family), name


@pytest.mark.parametrize("block_size", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_pool_that_barely_fits_one_row(family: str, block_size: int) -> None:
    slots = max(map(len, PROMPTS)) + MAX_TOKENS - 1
    with Engine(tiny_model(family)) as probe:
        token_bytes = probe._runner.kv_bytes_per_token
    budget = -(-slots // block_size) * block_size * token_bytes
    with Engine(tiny_model(family), block_size=block_size, kv_memory=budget, max_batch_tokens=40) as engine:
        assert run(engine) == reference(family)
        assert engine.stats.peak_kv_blocks <= -(-slots // block_size)


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 17, 64, 10_000])
@pytest.mark.parametrize("share_in_step", [True, False])
def test_any_step_size(max_batch_tokens: int, share_in_step: bool) -> None:
    with Engine(tiny_model(), max_batch_tokens=max_batch_tokens, share_in_step=share_in_step) as engine:
        assert run(engine) == reference("llama")


def test_few_running_rows_and_a_narrow_window() -> None:
    with Engine(tiny_model(), max_running=2, window=3) as engine:
        assert run(engine) == reference("llama")


@pytest.mark.parametrize("max_batch_tokens", [96, 700, 4000])
def test_a_shared_prefix_is_computed_exactly_once(max_batch_tokens: int) -> None:
    rng = np.random.default_rng(0)
    shared = rng.integers(8, 100, 128)
    prompts = [np.concatenate([shared, [100 + row], rng.integers(8, 200, 7)]) for row in range(64)]
    with Engine(tiny_model(), max_batch_tokens=max_batch_tokens) as engine:
        list(engine.generate(Request(row, prompt, max_tokens=2) for row, prompt in enumerate(prompts)))
        assert engine.stats.computed_tokens == 128 + 64 * 8 == distinct_prefixes(prompts)
        assert engine.stats.prompt_tokens == 64 * 136
        assert engine.stats.hit_rate == pytest.approx(1 - (128 + 512) / (64 * 136))
    with Engine(tiny_model(), prefix_sharing=False) as engine:
        list(engine.generate(Request(row, prompt, max_tokens=2) for row, prompt in enumerate(prompts)))
        assert engine.stats.computed_tokens == 64 * 136


def test_a_sorted_stream_keeps_its_sharing_across_the_window() -> None:
    prompts = sorted(prompt.tolist() for prompt in tree_prompts(60, seed=3)[:-1])
    prompts = [np.array([*prompt, 5]) for prompt in prompts]  # the end mark keeps one from ending inside another
    with Engine(tiny_model(), window=6, max_running=3) as engine:
        list(engine.generate(Request(row, prompt, max_tokens=1) for row, prompt in enumerate(prompts)))
        assert engine.stats.computed_tokens == distinct_prefixes(prompts)


def test_statistics_of_a_part() -> None:
    with Engine(tiny_model()) as engine:
        run(engine)
        before = engine.stats.snapshot()
        run(engine)
        part = engine.stats.difference(before)
        assert part.requests == len(PROMPTS)
        assert part.prompt_tokens == sum(map(len, PROMPTS))
        assert part.output_tokens == sum(map(len, reference("llama")))
        assert 0 < part.steps < engine.stats.steps
