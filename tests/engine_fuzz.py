"""Random models of odd shapes, random batches and random switches, each from one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as T

EOS = 7
CONTEXT = 192

_FUSED = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3Text")
_OTHERS = (
    "Gemma",
    "Phi3",
    "Olmo2",
    "Granite",
    "Cohere",
    "Starcoder2",
    "Glm4",
    "Mixtral",
    "Qwen3Moe",
    "StableLm",
    "GPTNeoX",
)
_OWN_HEADS = ("Llama", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "Glm4", "Qwen3Moe", "Mixtral")
"""Families whose heads need not add up to the hidden size."""


@dataclass(frozen=True)
class Case:
    """A model's configuration, how it is stored and loaded, the engine's switches, prompts and lengths of outputs."""

    seed: int
    config: Any
    stored: torch.dtype
    sharded: bool
    dtype: torch.dtype
    switches: dict[str, Any]
    prompts: list[np.ndarray]
    lengths: list[int]

    def __str__(self) -> str:
        config = {key: value for key, value in sorted(self.config.to_diff_dict().items()) if key != "dtype"}
        lengths = [len(prompt) for prompt in self.prompts]
        return (
            f"case {self.seed}: {config}, stored in {self.stored}, run in {self.dtype}, {self.switches}, prompts of"
            f" {lengths}, outputs of {self.lengths}"
        )


def random_case(seed: int, *, others: bool = True) -> Case:
    """The case of this number; `others` takes in families without a fused decoder."""
    rng = np.random.default_rng(seed)
    families = _FUSED * 4 + _OTHERS if others else _FUSED
    config = _config(rng, families[rng.integers(len(families))])
    switches = _switches(rng)
    prompts = _prompts(rng, config.vocab_size, int(switches["block_size"]))
    lengths = rng.choice([1, 1, 2, 5, 9], len(prompts)).tolist()
    types = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
    chooses = "num_experts_per_tok" in config.to_dict()  # rounding may send a token to another expert
    dtype = torch.bfloat16 if rng.random() < 0.25 and not chooses else torch.float32
    return Case(seed, config, types[rng.integers(4)], bool(rng.random() < 0.3), dtype, switches, prompts, lengths)


def random_model(case: Case) -> Any:
    """The case's model in float32, with norms and biases that count, and weights that its stored type holds."""
    torch.manual_seed(case.seed)
    model = T.AutoModelForCausalLM.from_config(case.config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn(weight.shape)
        weight.data = weight.data.to(case.stored).float()
    return model


def model_logits(model: Any, prompt: np.ndarray, tokens: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] from which each of the tokens that follow the prompt is taken."""
    ids = torch.tensor(np.concatenate([prompt, tokens[:-1]]).astype(np.int64))[None]
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 :]


def shortfall(logits: torch.Tensor, tokens: list[int]) -> float:
    """By how much the worst of the tokens misses the best one of its place, in deviations of the logits there."""
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float(((logits.amax(1) - chosen) / logits.std(1)).max())


def _config(rng: np.random.Generator, family: str) -> Any:
    heads = int(rng.choice([1, 2, 3, 4, 5, 7, 12]))
    kv_heads = int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0]))
    head_dim = int(rng.choice([6, 8, 16, 24, 40, 64, 80, 96, 128, 256] if heads < 4 else [4, 8, 16, 24, 40]))
    own = family in _OWN_HEADS
    hidden = int(rng.choice([16, 33, 50, 64, 71, 100])) if own else heads * head_dim
    if family in ("Llama", "Gemma2", "Gemma3Text"):  # their configurations want a multiple of the heads
        hidden = heads * max(1, hidden // heads)
    if family in ("Mixtral", "Qwen3Moe"):  # torch's grouped products want multiples of 16 bytes
        hidden = 48
    layers = int(rng.integers(1, 5))
    options: dict[str, Any] = {
        "vocab_size": int(rng.choice([97, 203, 256, 515])),
        "hidden_size": hidden,
        "intermediate_size": 48 if family == "Mixtral" else int(rng.choice([1, 13, 48, 67, 130])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "initializer_range": float(rng.uniform(0.8, 2.0)) / hidden**0.5,
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-2])),
        "tie_word_embeddings": bool(rng.random() < 0.5),
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    if own:
        options["head_dim"] = head_dim
    options.update(_options(rng, family, layers, head_dim))
    return getattr(T, f"{family}Config")(**options)


def _options(rng: np.random.Generator, family: str, layers: int, head_dim: int) -> dict[str, Any]:
    """What one family has and others have not."""
    coin = lambda: bool(rng.random() < 0.5)  # noqa: E731
    window = int(rng.choice([1, 2, 5, 16, 17, 64, CONTEXT + 5]))
    kinds = [str(kind) for kind in rng.choice(["sliding_attention", "full_attention"], layers)]
    mixture = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": int(rng.integers(1, 4))}
    gemma = {
        "sliding_window": window,
        "layer_types": kinds,
        "query_pre_attn_scalar": int(rng.choice([7, head_dim])),
        "attention_bias": coin(),
        "attn_logit_softcapping": float(rng.choice([2.0, 30.0])) if coin() else None,
        "final_logit_softcapping": float(rng.choice([3.0, 30.0])) if coin() else None,
        "hidden_activation": str(rng.choice(["gelu_pytorch_tanh", "gelu_pytorch_tanh", "silu", "silu", "gelu"])),
    }
    activation = {
        "hidden_act": str(rng.choice(["silu", "silu", "silu", "gelu_pytorch_tanh", "gelu_pytorch_tanh", "relu"]))
    }
    if family == "Llama":
        return {**activation, "attention_bias": coin(), "mlp_bias": coin(), **_rope(rng, head_dim)}
    if family == "Qwen2":
        sliding = {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds} if coin() else {}
        return {**activation, **sliding, **_rope(rng, head_dim)}
    if family == "Qwen3":
        sliding = {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds} if coin() else {}
        return {**activation, **sliding, "attention_bias": coin(), **_rope(rng, head_dim)}
    if family == "Mistral":
        return {**activation, "sliding_window": window if coin() else None, **_rope(rng, head_dim)}
    if family in ("Gemma2", "Gemma3Text"):
        return gemma
    if family == "Granite":
        scales = ("logits_scaling", "residual_multiplier", "embedding_multiplier")
        scale = float(rng.uniform(0.2, 1.5)) / head_dim**0.5
        return {"attention_multiplier": scale, **{name: float(rng.uniform(0.2, 3.0)) for name in scales}}
    if family == "Cohere":
        return {"logit_scale": float(rng.uniform(0.1, 2.0)), "use_qk_norm": coin()}
    if family == "Starcoder2":
        return {"sliding_window": window if coin() else None, "use_bias": coin(), "residual_dropout": 0.0}
    if family == "Phi3":
        return {"sliding_window": window if coin() else None}
    if family == "Mixtral":
        return {**mixture, "sliding_window": window if coin() else None}
    if family == "Qwen3Moe":
        return {**mixture, "moe_intermediate_size": 16, "decoder_sparse_step": 1 + int(coin())}
    if family == "StableLm":
        return {"use_parallel_residual": coin(), "use_qkv_bias": coin()}
    if family == "GPTNeoX":
        return {"use_parallel_residual": coin(), "hidden_act": "gelu"}
    return {}


def _rope(rng: np.random.Generator, head_dim: int) -> dict[str, Any]:
    kind = str(rng.choice(["default", "linear", "dynamic", "yarn", "llama3", "longrope"]))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": float(rng.choice([50.0, 1e4, 1e6]))}
    if kind != "default":
        rope["factor"] = float(rng.choice([2.0, 8.0]))
    if kind == "yarn":
        rope["original_max_position_embeddings"] = CONTEXT // 4
    if kind == "llama3":
        rope.update(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    if kind == "longrope":
        rope.update(
            original_max_position_embeddings=CONTEXT - 20,
            short_factor=rng.uniform(1, 2, head_dim // 2).tolist(),
            long_factor=rng.uniform(2, 5, head_dim // 2).tolist(),
        )
    return {"rope_parameters": rope}


def _switches(rng: np.random.Generator) -> dict[str, Any]:
    on_and_off = (
        "prefix_sharing",
        "share_in_step",
        "cascade",
        "prefix_cache",
        "exact_admission",
        "longest_first",
        "fused",
    )
    switches: dict[str, Any] = {name: bool(rng.random() < 0.75) for name in on_and_off}
    switches["block_size"] = int(rng.choice([1, 3, 8, 16, 16, 32]))
    switches["max_batch_tokens"] = int(rng.choice([1, 7, 40, 150, 1000]))
    switches["kernels"] = str(rng.choice(["auto", "auto", "torch"]))
    if rng.random() < 0.3:
        switches["max_running"] = int(rng.integers(1, 5))
    if rng.random() < 0.3:
        switches["window"] = int(rng.integers(1, 6))
    return switches


def _prompts(rng: np.random.Generator, vocab: int, block: int) -> list[np.ndarray]:
    """A tree whose branches part at block edges and beside them, with twins and prompts that begin others."""
    longest = CONTEXT - 30  # the context of `longrope` less the longest output and a little
    root = rng.integers(8, vocab, longest)
    prompts = [root[: int(rng.choice([1, 2, block, 2 * block + 1, longest]))]]
    for _ in range(int(rng.integers(4, 12))):
        stem = prompts[rng.integers(len(prompts))] if rng.random() < 0.4 else root
        cut = int(rng.choice([0, 1, block - 1, block, block + 1, 3 * block, len(stem)]))
        tail = rng.integers(8, vocab, int(rng.choice([0, 1, 2, block, 40])))
        prompt = np.concatenate([stem[:cut], tail])[:longest]
        prompts.append(prompt if len(prompt) else root[:1])
    return prompts
