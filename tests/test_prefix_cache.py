"""KV that outlives its requests: later batches start warm, and nobody is kept out by it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engine_models import distinct_prefixes, tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, EngineStats, Request

PROMPTS = tree_prompts(12, seed=6)


def run(engine: Engine, prompts: list[np.ndarray], max_tokens: int = 6) -> tuple[list[tuple[int, ...]], EngineStats]:
    before = engine.stats.snapshot()
    requests = [Request(row, prompt, max_tokens=max_tokens) for row, prompt in enumerate(prompts)]
    answers = {answer.id: answer.token_ids for answer in engine.generate(requests)}
    engine.check()
    return [answers[row] for row in range(len(prompts))], engine.stats.difference(before)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_a_second_batch_starts_warm_and_says_the_same(family: str) -> None:
    expected = [tuple(tiny_answer(prompt, 6, family)) for prompt in PROMPTS]
    for prefix_cache in (True, False):
        with Engine(tiny_model(family), prefix_cache=prefix_cache) as engine:
            cold, first = run(engine, PROMPTS)
            warm, second = run(engine, PROMPTS)
        assert cold == warm == expected
        assert first.cached_tokens == 0
        if prefix_cache:
            assert second.cached_tokens == distinct_prefixes(PROMPTS)
            assert second.computed_tokens == len({tuple(prompt) for prompt in PROMPTS})  # for their logits
        else:
            assert second.cached_tokens == 0
            assert second.computed_tokens == first.computed_tokens >= distinct_prefixes(PROMPTS)


def test_new_rows_below_the_same_instructions_compute_only_their_own_part() -> None:
    rng = np.random.default_rng(0)
    instructions = rng.integers(8, 100, 70)
    rows = [np.concatenate([instructions, [100 + row], rng.integers(8, 200, 5)]) for row in range(16)]
    with Engine(tiny_model()) as engine:
        _, first = run(engine, rows[:8])
        _, second = run(engine, rows[8:])
        assert (first.computed_tokens, first.cached_tokens) == (70 + 8 * 6, 0)
        assert (second.computed_tokens, second.cached_tokens) == (8 * 6, 70)
        engine.clear_cache()
        assert engine._pool.num_used == 0
        _, third = run(engine, rows[8:])
        assert third.computed_tokens == 70 + 8 * 6


def test_outputs_and_labels_are_not_kept() -> None:
    with Engine(tiny_model()) as engine:
        requests = [Request(row, prompt, choices=[[20, 21], [20, 22]]) for row, prompt in enumerate(PROMPTS)]
        list(engine.generate([*requests, *(Request(0, prompt, max_tokens=9) for prompt in PROMPTS)]))
        engine.check()
        assert sum(node.length for node in engine._scheduler.tree.depth_first()) == distinct_prefixes(PROMPTS)


def test_prefixes_last_from_one_window_of_a_stream_to_the_next() -> None:
    rng = np.random.default_rng(1)
    groups = [rng.integers(8, 200, 40) for _ in range(3)]
    prompts = [np.concatenate([groups[row % 3], [8 + row]]) for row in range(60)]
    computed = {}
    for prefix_cache in (True, False):
        with Engine(tiny_model(), window=2, prefix_cache=prefix_cache) as engine:
            _, stats = run(engine, prompts, max_tokens=1)
            computed[prefix_cache] = stats.computed_tokens
    assert computed[True] == distinct_prefixes(prompts)
    assert computed[False] > 5 * computed[True]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_the_cache_makes_way_in_a_small_pool(block_size: int) -> None:
    longest = max(map(len, PROMPTS)) + 5
    with Engine(tiny_model()) as probe:
        token_bytes = probe._runner.kv_bytes_per_token
        expected, _ = run(probe, PROMPTS)
    num_blocks = -(-longest // block_size) + 2
    with Engine(tiny_model(), block_size=block_size, kv_memory=num_blocks * block_size * token_bytes) as engine:
        rng = np.random.default_rng(0)
        for _ in range(4):
            order = rng.permutation(len(PROMPTS))
            answers, _ = run(engine, [PROMPTS[row] for row in order])
            assert answers == [expected[row] for row in order]
            assert engine._pool.num_used <= num_blocks


def test_a_stream_that_is_cut_leaves_what_was_computed() -> None:
    def endless() -> Iterator[Request]:
        while True:
            yield from (Request(row, prompt, max_tokens=3) for row, prompt in enumerate(PROMPTS))

    with Engine(tiny_model(), max_batch_tokens=50) as engine:
        results = engine.generate(endless())
        next(results)
        results.close()
        engine.check()
        assert 0 < sum(node.length for node in engine._scheduler.tree.depth_first()) <= distinct_prefixes(PROMPTS)
        answers, _ = run(engine, PROMPTS)
        assert answers == [tuple(tiny_answer(prompt, 6)) for prompt in PROMPTS]
