from __future__ import annotations

import numpy as np
import torch
from engine_models import tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request
from llmsql.gpu_backend.sampling import Draw, draw, greedy

PROMPTS = tree_prompts(8, seed=2)


def sample(rows: list[int], seed: int | None = 5, **switches: object) -> dict[object, tuple[int, ...]]:
    with Engine(tiny_model(), **switches) as engine:
        requests = [Request(row, PROMPTS[row], max_tokens=6, temperature=0.8, seed=seed) for row in rows]
        return {answer.id: answer.token_ids for answer in engine.generate(requests)}


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    together = sample(list(range(8)))
    assert together == sample(list(range(8))[::-1], max_batch_tokens=11)
    for row in range(8):
        assert sample([row]) == {row: together[row]}
    assert together != sample(list(range(8)), seed=6)


def test_without_a_seed_draws_differ() -> None:
    assert sample(list(range(8)), seed=None) != sample(list(range(8)), seed=None)


def test_a_low_temperature_is_greedy() -> None:
    with Engine(tiny_model()) as engine:
        cold = [Request(row, prompt, max_tokens=6, temperature=1e-4, seed=1) for row, prompt in enumerate(PROMPTS)]
        plain = [Request(row, prompt, max_tokens=6) for row, prompt in enumerate(PROMPTS)]
        tokens = [{answer.id: answer.token_ids for answer in engine.generate(batch)} for batch in (cold, plain)]
    assert tokens[0] == tokens[1]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, float("-inf")]])
    expected = torch.softmax(logits / 1.5, -1)[0].numpy()
    count = 4000
    drawn = draw(logits.expand(count, -1), [Draw(1.5, seed=3, step=step) for step in range(count)])
    frequencies = np.bincount(drawn, minlength=5) / count
    assert np.abs(frequencies - expected).max() < 0.03
    assert frequencies[4] == 0


def test_rows_with_nan_are_reported() -> None:
    tokens, usable = greedy(torch.tensor([[1.0, 3.0, 2.0], [1.0, float("nan"), 2.0]]))
    assert tokens[0] == 1
    assert usable.tolist() == [True, False]
