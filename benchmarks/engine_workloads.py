"""Random models of three sizes, and batches of prompts that share beginnings in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

TOKENIZER = Path(__file__).parents[1] / "llmsql" / "demo" / "model"
"""Whose tokenizer the constrained outputs are written with; its vocabulary is within that of every model here."""

_MODELS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "tiny": lambda: transformers.Qwen2Config(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "20M": lambda: transformers.Qwen2Config(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "135M": lambda: transformers.LlamaConfig(  # the shape of SmolLM2-135M
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "500M": lambda: transformers.Qwen2Config(  # the shape of Qwen2.5-0.5B
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
MODELS = tuple(_MODELS)

JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "neutral"]},
        "rating": {"type": "integer", "minimum": 1, "maximum": 5},
        "would_recommend": {"type": "boolean"},
        "category": {"enum": ["electronics", "clothing", "kitchen", "garden", "books"]},
    },
    "required": ["sentiment", "rating", "would_recommend", "category"],
    "additionalProperties": False,
}


def random_model(name: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """One of `MODELS` with random weights and no end-of-sequence token."""
    torch.manual_seed(0)
    config = _MODELS[name]()
    config.max_position_embeddings = 4096
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


@dataclass(frozen=True)
class Workload:
    """Prompts by the lengths and branches of their levels: every node of a level has so many children below it."""

    title: str
    levels: Sequence[tuple[int, int]]  # (branches, tokens of each)
    output: int
    answer: str = "text"  # or "choice", "json"

    def prompts(self, seed: int, rows: int | None = None) -> list[list[int]]:
        """Random token ids; siblings begin with different tokens. The first `rows` only, if given."""
        rng = np.random.default_rng(seed)
        prompts: list[list[int]] = [[]]
        for branches, tokens in self.levels:
            prompts = [
                [*prompt, 8 + branch, *rng.integers(8, 2000, tokens - 1).tolist()]
                for prompt, branch in _spread(prompts, branches, rng)
            ]
        return prompts if rows is None else prompts[:rows]

    @property
    def distinct_tokens(self) -> int:
        """Prompt tokens that have to be computed when each prefix is computed once."""
        nodes = np.cumprod([branches for branches, _ in self.levels])
        return int((nodes * [tokens for _, tokens in self.levels]).sum())


def _spread(prompts: list[list[int]], branches: int, rng: np.random.Generator) -> list[tuple[list[int], int]]:
    first = int(rng.integers(0, 1000))  # so that other seeds share nothing
    return [(prompt, first + branch) for prompt in prompts for branch in range(branches)]


WORKLOADS = {
    "shared": Workload("64 rows, 512 shared + 32 own tokens, 32 new", [(1, 512), (64, 32)], 32),
    "groups": Workload("8 groups x 8 rows, 256 shared + 32 own tokens, 32 new", [(8, 256), (8, 32)], 32),
    "deep": Workload(
        "64 rows in a tree of 5 levels, 128 + 64 + 64 + 64 + 32 tokens, 32 new",
        [(1, 128), (4, 64), (2, 64), (2, 64), (4, 32)],
        32,
    ),
    "none": Workload("32 rows, nothing shared, 544 tokens, 32 new", [(32, 544)], 32),
    "long": Workload("32 rows, 512 shared + 32 own tokens, 256 new", [(1, 512), (32, 32)], 256),
    "choices": Workload("64 rows, 512 shared + 32 own tokens, one of two labels", [(1, 512), (64, 32)], 1, "choice"),
    "json": Workload("64 rows, 512 shared + 32 own tokens, JSON of 4 fields", [(1, 512), (64, 32)], 64, "json"),
}

QUICK_WORKLOADS = {
    "shared": Workload("4 rows, 32 shared + 8 own tokens, 4 new", [(1, 32), (4, 8)], 4),
    "groups": Workload("2 groups x 2 rows, 16 shared + 8 own tokens, 4 new", [(2, 16), (2, 8)], 4),
    "deep": Workload("4 rows in a tree of 3 levels, 16 + 8 + 8 tokens, 4 new", [(1, 16), (2, 8), (2, 8)], 4),
    "none": Workload("3 rows, nothing shared, 40 tokens, 4 new", [(3, 40)], 4),
    "long": Workload("3 rows, 16 shared + 4 own tokens, 24 new", [(1, 16), (3, 4)], 24),
    "choices": Workload("4 rows, 32 shared + 8 own tokens, one of two labels", [(1, 32), (4, 8)], 1, "choice"),
    "json": Workload("3 rows, 32 shared + 8 own tokens, JSON of 4 fields", [(1, 32), (3, 8)], 64, "json"),
}
