"""Models of odd shapes, loaded from files, against their own code in transformers, by every switch of the engine."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fuzz import CONTEXT, EOS, Case, model_logits, random_case, random_model, shortfall

from llmsql.gpu_backend import Engine, Request

CHOICES = [[8, 9], [9, 9], [10, 9], [8, 10], [8]]  # the last one begins others, so its end is scored, too
TOLERANCE = {torch.float32: (1e-3, 5e-3), torch.bfloat16: (0.6, 1.0)}
"""Of a token, in deviations of the logits, and of a log-probability."""


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_those_of_the_models_own_code(seed: int, tmp_path: Path) -> None:
    check(random_case(seed, others=seed % 2 == 0), tmp_path)


@pytest.mark.fuzz
def test_answers_are_those_of_the_models_own_code_at_length(tmp_path: Path) -> None:
    first = int(time.time())
    for seed in range(first, first + 200):
        check(random_case(seed), tmp_path / str(seed))


def check(case: Case, folder: Path) -> None:
    model = random_model(case)
    copy.deepcopy(model).to(case.stored).save_pretrained(folder, max_shard_size="20KB" if case.sharded else "5GB")
    with Engine(folder, dtype=case.dtype, kv_memory=_pool(case), **case.switches) as engine:
        for _ in range(2):  # the second time by the prefix cache
            _check_texts(case, model, engine)
        _check_choices(case, model, engine)
        engine.check()
        engine.clear_cache()
        assert engine._pool.num_used == 0


def _pool(case: Case) -> int:
    """Bytes for the longest request and a few blocks, or for all of them."""
    config, block = case.config, int(case.switches["block_size"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * kv_heads * head_dim * case.dtype.itemsize
    longest = max(len(prompt) + length for prompt, length in zip(case.prompts, case.lengths))
    return (longest // block + 8 + 400 * (case.seed % 2)) * block * token


def _check_texts(case: Case, model: torch.nn.Module, engine: Engine) -> None:
    requests = [
        Request(row, prompt, max_tokens=length, ignore_eos=True, return_log_probs=True)
        for row, (prompt, length) in enumerate(zip(case.prompts, case.lengths))
    ]
    of_token, of_log_prob = TOLERANCE[case.dtype]
    for answer in engine.generate(requests):
        assert answer.error is None, str(case)
        row, tokens = int(str(answer.id)), list(answer.token_ids)
        logits = model_logits(model, case.prompts[row], tokens)
        assert len(tokens) == case.lengths[row], str(case)
        assert shortfall(logits, tokens) < of_token, str(case)
        assert _log_probs(logits, tokens) == pytest.approx(
            answer.log_probs, abs=of_log_prob * (1 + float(logits.std()))
        ), str(case)


def _check_choices(case: Case, model: torch.nn.Module, engine: Engine) -> None:
    prompts = case.prompts[:3]
    for answer in engine.generate(Request(row, prompt, choices=CHOICES) for row, prompt in enumerate(prompts)):
        assert answer.error is None, str(case)
        prompt = prompts[int(str(answer.id))]
        assert len(prompt) + 2 <= CONTEXT
        for label, log_prob in zip([*CHOICES[:-1], [8, EOS]], answer.log_probs or ()):
            logits = model_logits(model, prompt, label)
            tolerance = 2 * TOLERANCE[case.dtype][1] * (1 + float(logits.std()))
            assert sum(_log_probs(logits, label)) == pytest.approx(log_prob, abs=tolerance), str(case)
        assert answer.choice_index == int(np.argmax(answer.scores))


def _log_probs(logits: torch.Tensor, tokens: list[int]) -> list[float]:
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
