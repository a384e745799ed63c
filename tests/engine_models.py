"""Tiny random models and prompts for the engine's tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as T

VOCAB = 200
EOS = 7

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # wide enough for logits without near-ties
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
_GEMMA = {**_BASE, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 12}

CONFIGS: dict[str, Any] = {
    "llama": lambda: T.LlamaConfig(**_BASE),
    "qwen2": lambda: T.Qwen2Config(**_BASE, tie_word_embeddings=True),
    "qwen3": lambda: T.Qwen3Config(**_BASE, head_dim=8),
    "mistral": lambda: T.MistralConfig(**_BASE, sliding_window=20),
    "gemma2": lambda: T.Gemma2Config(**_GEMMA),
    "gemma3": lambda: T.Gemma3TextConfig(**{**_GEMMA, "num_hidden_layers": 6}),
    "phi3": lambda: T.Phi3Config(**_BASE),
    "granite": lambda: T.GraniteConfig(**_BASE, attention_multiplier=0.3, logits_scaling=2.0),
    "mixtral": lambda: T.MixtralConfig(**_BASE, num_local_experts=4),
    "qwen3-moe": lambda: T.Qwen3MoeConfig(
        **_BASE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
}


@cache
def tiny_model(family: str = "llama") -> Any:
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def tree_prompts(count: int = 14, seed: int = 0) -> list[np.ndarray]:
    """Prompts of 2 to 90 tokens in a tree: shared beginnings of several lengths, and two equal prompts."""
    rng = np.random.default_rng(seed)
    root = rng.integers(8, VOCAB, 60)
    prompts = []
    while len(prompts) < count - 1:
        group = np.concatenate([root[: rng.choice([1, 5, 20, 40, 60])], rng.integers(8, VOCAB, rng.integers(0, 9))])
        for _ in range(rng.integers(1, 4)):
            prompts.append(np.concatenate([group, rng.integers(8, VOCAB, rng.integers(1, 22))]))
    return [*prompts[: count - 1], prompts[0]]


def generate_one(model: Any, prompt: np.ndarray, max_tokens: int) -> list[int]:
    """The reference: `transformers.generate` on one prompt alone, greedy."""
    ids = torch.tensor(prompt, device=model.device)[None]
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
    return out[0, len(prompt) :].tolist()


def tiny_answer(prompt: np.ndarray, max_tokens: int, family: str = "llama") -> list[int]:
    """`generate_one` of a `tiny_model`, which runs once for each prompt and length."""
    return list(_tiny_answer(family, tuple(prompt.tolist()), max_tokens))


@cache
def _tiny_answer(family: str, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    return generate_one(tiny_model(family), np.array(prompt), max_tokens)


def distinct_prefixes(prompts: list[np.ndarray]) -> int:
    return len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})
