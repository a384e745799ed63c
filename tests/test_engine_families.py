"""Architectures beside those with a fused decoder: greedy tokens are the model's own, or loading says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from engine_models import _BASE, tree_prompts

from llmsql.gpu_backend import Engine, ModelError, Request

PROMPTS = [*tree_prompts(6, seed=5), tree_prompts(2, seed=6)[0][:1]]
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA3N = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 200, "laurel_rank": 4, "head_dim": 8}
GEMMA4 = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 200, "head_dim": 8, "global_head_dim": 24}

RUN: dict[str, Any] = {
    "stablelm": lambda: T.StableLmConfig(**_BASE, qk_layernorm=True, use_parallel_residual=True),
    "nemotron": lambda: T.NemotronConfig(**_BASE),
    "cohere2": lambda: T.Cohere2Config(**_BASE, **LAYERS),
    "olmo2": lambda: T.Olmo2Config(**_BASE),
    "gpt2": lambda: T.GPT2Config(
        vocab_size=200,
        n_embd=40,
        n_layer=2,
        n_head=5,
        n_positions=256,
        initializer_range=0.3,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "phi": lambda: T.PhiConfig(**_BASE, qk_layernorm=True, rope_parameters={"partial_rotary_factor": 0.5}),
    "starcoder2": lambda: T.Starcoder2Config(**_BASE, sliding_window=12),
    "smollm3": lambda: T.SmolLM3Config(**_BASE, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=12),
    "minicpm3": lambda: T.MiniCPM3Config(**{**_BASE, "num_key_value_heads": 4}, **LATENT),
    "gemma3n": lambda: T.Gemma3nTextConfig(
        **{**_BASE, "intermediate_size": [48, 32]},
        **LAYERS,
        **GEMMA3N,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma4": lambda: T.Gemma4TextConfig(
        **{**_BASE, "num_hidden_layers": 4, **LAYERS, "layer_types": LAYERS["layer_types"] * 2},  # type: ignore[operator]
        **GEMMA4,
        num_kv_shared_layers=2,
    ),
    "a window as long as the context": lambda: T.PhimoeConfig(**_BASE, **MIXTURE, sliding_window=256),
    "chunks as long as the context": lambda: T.Llama4TextConfig(
        **_BASE, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=256
    ),
    "no recurrent layer": lambda: T.Lfm2Config(**_BASE, full_attn_idxs=[0, 1]),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "two attentions in a layer": (lambda: T.DiffLlamaConfig(**_BASE), "attends more than once in a layer"),
    "a window that the mask knows": (
        lambda: T.PhimoeConfig(**_BASE, **MIXTURE, sliding_window=40),
        "mask of its own that hides more, such as chunks",
    ),
    "chunks": (
        lambda: T.Llama4TextConfig(
            **_BASE, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=255
        ),
        "a window that only the mask knows",
    ),
    "positions from 2 on": (lambda: T.CamembertConfig(**_BASE, is_decoder=True), "packed together get other logits"),
    "a recurrence beside attention": (
        lambda: T.FalconH1Config(
            **_BASE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
        ),
        "packed together get other logits",
    ),
    "later tokens": (lambda: T.Gemma3TextConfig(**_BASE, use_bidirectional_attention=True), "looks at later tokens"),
}


def random_model(make: Any) -> Any:
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(make()).eval()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += 0.2 * torch.randn(weight.shape)
    return model


def shortfall(model: Any, prompt: np.ndarray, tokens: tuple[int, ...]) -> float:
    """By how much the worst of the tokens misses the best one of its place, in deviations of the logits there."""
    ids = torch.tensor(np.concatenate([prompt, tokens[:-1]]).astype(np.int64))[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 :]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float(((logits.amax(1) - chosen) / logits.std(1)).max())


@pytest.mark.parametrize("name", RUN)
def test_tokens_are_the_models_own(name: str) -> None:
    model = random_model(RUN[name])
    with Engine(model, kv_memory="4MB", max_batch_tokens=48, block_size=5) as engine:
        assert engine.decoder == "transformers"
        requests = [Request(row, prompt, max_tokens=6, ignore_eos=True) for row, prompt in enumerate(PROMPTS)]
        answers = {answer.id: answer for answer in engine.generate(requests)}
        engine.check()
    assert len({answer.token_ids for answer in answers.values()}) > 1
    for row, prompt in enumerate(PROMPTS):
        assert answers[row].error is None
        assert shortfall(model, prompt, answers[row].token_ids) < 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_answer_otherwise_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        Engine(random_model(make))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_differences_are_no_rounding(dtype: str) -> None:
    with pytest.raises(ModelError, match="packed together get other logits"):
        Engine(random_model(REFUSED["positions from 2 on"][0]), dtype=dtype)
