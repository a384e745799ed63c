"""Variants of the fused families: each turns one feature on, in models where all weights count."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as T
from engine_models import _BASE, _GEMMA


def _llama(**changes: Any) -> Callable[[], Any]:
    return lambda: T.LlamaConfig(**{**_BASE, **changes})


def _scaled(kind: str, **parameters: Any) -> Callable[[], Any]:
    return _llama(rope_parameters={"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **parameters})


_GLOBAL_AND_LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

VARIANTS: dict[str, Callable[[], Any]] = {
    "biases": _llama(attention_bias=True, mlp_bias=True),
    "tied": _llama(tie_word_embeddings=True),
    "one kv head": _llama(num_key_value_heads=1),
    "a kv head each": _llama(num_key_value_heads=4),
    "wide heads": _llama(head_dim=24),
    "one layer": _llama(num_hidden_layers=1),
    "gelu": _llama(hidden_act="gelu_pytorch_tanh"),
    "linear": _scaled("linear"),
    "llama3": _scaled(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=50.0
    ),
    "yarn": _scaled("yarn", original_max_position_embeddings=64),
    "dynamic": _scaled("dynamic"),
    "longrope": _scaled(
        "longrope",
        original_max_position_embeddings=110,
        short_factor=[1.0, 1.5, 2.0, 2.5],
        long_factor=[4.0, 5.0, 6.0, 7.0],
    ),
    "qwen2": lambda: T.Qwen2Config(
        **_BASE, tie_word_embeddings=True, use_sliding_window=True, sliding_window=18, max_window_layers=1
    ),
    "qwen3": lambda: T.Qwen3Config(**_BASE, head_dim=16, attention_bias=True),
    "mistral": lambda: T.MistralConfig(**_BASE, sliding_window=20, head_dim=16),
    "mistral without window": lambda: T.MistralConfig(**_BASE, sliding_window=None),
    "gemma2": lambda: T.Gemma2Config(**_GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=1.5),
    "gemma2 untied": lambda: T.Gemma2Config(**_GEMMA, tie_word_embeddings=False, attention_bias=True),
    "gemma3": lambda: T.Gemma3TextConfig(
        **{**_GEMMA, "num_hidden_layers": 3},
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=_GLOBAL_AND_LOCAL,
        final_logit_softcapping=4.0,
    ),
}

MIXTURES: dict[str, Callable[[], Any]] = {
    "qwen2-moe": lambda: T.Qwen2MoeConfig(
        **_BASE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24
    ),
    "deepseek-v3": lambda: T.DeepseekV3Config(
        **{**_BASE, "num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
    ),
}


@cache
def variant(name: str) -> Any:
    """The model with random norms and biases too; transformers begins with ones and zeros."""
    torch.manual_seed(1)
    model = T.AutoModelForCausalLM.from_config({**VARIANTS, **MIXTURES}[name]()).eval()
    for path, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.normal_(1.0 if "norm" in path and "gemma" not in name else 0.0, 0.2)
    return model
