from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
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


FILTERS = [{"top_k": 1}, {"top_k": 7}, {"top_p": 0.6}, {"top_p": 1e-6}, {"min_p": 0.2}, {"top_k": 12, "top_p": 0.8}]
FILTERS += [{"top_k": 500}, {"top_k": 20, "top_p": 0.9, "min_p": 0.1}, {}]


def kept(logits: torch.Tensor, draws: list[Draw]) -> list[set[int]]:
    """The tokens that some of many seeds give, row by row."""
    drawn = [draw(logits, [replace(each, seed=seed) for each in draws]) for seed in range(400)]
    return [set(column) for column in np.array(drawn).T.tolist()]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_the_same_tokens_are_left_out_as_by_transformers(temperature: float) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(len(FILTERS), 40)).astype(np.float32)) * 1.5
    drawn = kept(logits, [Draw(temperature, **options) for options in FILTERS])
    for row, options in enumerate(FILTERS):
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if "top_k" in options:
            warpers.append(TopKLogitsWarper(options["top_k"]))
        if "top_p" in options:
            warpers.append(TopPLogitsWarper(options["top_p"]))
        if "min_p" in options:
            warpers.append(MinPLogitsWarper(options["min_p"]))
        expected = warpers(None, logits[row : row + 1].clone())[0].softmax(-1)
        assert drawn[row] <= set(expected.nonzero().flatten().tolist()), options
        assert drawn[row] >= set((expected > 0.02).nonzero().flatten().tolist()), options


def test_filters_of_other_rows_change_nothing() -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(len(FILTERS), 300)).astype(np.float32)).round_()
    draws = [Draw(1.0, seed=row, step=3, **options) for row, options in enumerate(FILTERS)]
    together = draw(logits, draws).tolist()
    assert together == [int(draw(logits[row : row + 1], [each])[0]) for row, each in enumerate(draws)]
    assert together[::-1] == draw(logits.flip(0), draws[::-1]).tolist()


def test_the_filtered_distribution_is_the_rest_made_whole() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf"), 0.5]])
    count = 4000
    drawn = draw(logits.expand(count, -1), [Draw(1.0, top_k=3, seed=2, step=step) for step in range(count)])
    expected = torch.softmax(torch.tensor([2.0, 1.0, 0.5]), -1).numpy()
    frequencies = np.bincount(drawn, minlength=6) / count
    assert np.abs(frequencies[[0, 1, 5]] - expected).max() < 0.03
    assert frequencies[[2, 3, 4]].sum() == 0


def test_equally_likely_tokens_stay_together() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    assert kept(logits, [Draw(1.0, top_k=2)]) == [{0, 1, 2, 3}]
    assert kept(logits, [Draw(1.0, top_p=0.6)]) == [{0, 1, 2, 3}]


@pytest.mark.parametrize("temperature", [1e-50, 1e-7])
def test_temperatures_next_to_nothing(temperature: float) -> None:
    logits = torch.tensor([[1.0, 50.0, 49.9, float("-inf")]])
    assert draw(logits, [Draw(temperature)]).tolist() == [1]


def test_log_probs_are_those_of_the_plain_model() -> None:
    with Engine(tiny_model()) as engine:
        for options in ({}, {"temperature": 0.9, "seed": 4, "top_k": 5}):
            batch = [
                Request(row, prompt, max_tokens=5, return_log_probs=True, **options)
                for row, prompt in enumerate(PROMPTS)
            ]
            for answer in engine.generate(batch):
                ids = [*PROMPTS[answer.id].tolist(), *answer.token_ids]
                with torch.inference_mode():
                    log_probs = tiny_model()(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
                begin = len(PROMPTS[answer.id]) - 1
                expected = [float(log_probs[begin + i, token]) for i, token in enumerate(answer.token_ids)]
                assert answer.log_probs == pytest.approx(expected, abs=1e-4)
        (plain,) = engine.generate([Request(0, PROMPTS[0], max_tokens=2)])
        assert plain.log_probs is None


def test_seeds_and_filters_give_the_same_tokens_in_any_batch() -> None:
    batch = [
        Request((row, number), prompt, max_tokens=5, temperature=0.9, seed=row, **options)
        for row, prompt in enumerate(PROMPTS[:4])
        for number, options in enumerate(FILTERS)
    ]
    with Engine(tiny_model()) as engine:
        together = {answer.id: answer.token_ids for answer in engine.generate(batch)}
        alone = {request.id: next(iter(engine.generate([request]))).token_ids for request in batch}
    assert together == alone


def test_rows_with_nan_are_reported() -> None:
    tokens, usable = greedy(torch.tensor([[1.0, 3.0, 2.0], [1.0, float("nan"), 2.0]]))
    assert tokens[0] == 1
    assert usable.tolist() == [True, False]
