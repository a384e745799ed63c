"""Switches of the scheduler change how much runs at once, and nothing that is answered."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import tiny_answer, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request

PROMPTS = tree_prompts(14, seed=11)
LENGTHS = [1 + 5 * row % 17 for row in range(len(PROMPTS))]
SWITCHES: dict[str, dict[str, Any]] = {
    "all on": {},
    "whole reservation": {"exact_admission": False},
    "order of arrival": {"longest_first": False},
    "no cache": {"prefix_cache": False},
    "all off": {"exact_admission": False, "longest_first": False, "prefix_cache": False, "share_in_step": False},
}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("num_blocks", [28, 60, 1000])
def test_answers_do_not_depend_on_how_requests_are_scheduled(name: str, num_blocks: int) -> None:
    expected = {row: tiny_answer(prompt, length) for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS))}
    with Engine(tiny_model()) as probe:
        block_bytes = 4 * probe._runner.kv_bytes_per_token
    budget = num_blocks * block_bytes
    with Engine(tiny_model(), block_size=4, kv_memory=budget, max_batch_tokens=80, **SWITCHES[name]) as engine:
        for _ in range(2):
            requests = [
                Request(row, prompt, max_tokens=length) for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS))
            ]
            answers = {answer.id: list(answer.token_ids) for answer in engine.generate(requests)}
            engine.check()
            assert answers == expected
        assert engine.stats.peak_kv_blocks <= num_blocks
        if num_blocks == 28 and name == "all on":
            assert engine.stats.peak_kv_blocks >= 20  # the pool is what limits
