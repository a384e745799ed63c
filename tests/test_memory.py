"""The memory plan: its figures against measured ones, and what it says when they do not fit."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmsql.gpu_backend import Engine, MemoryBudgetError, Request, memory
from llmsql.gpu_backend.activations import StepMemory
from llmsql.gpu_backend.kv_cache import LayerShape

CONTEXT = 330
BASE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
CONFIGS = {
    "llama": lambda: T.LlamaConfig(**BASE),
    "gemma2": lambda: T.Gemma2Config(**BASE, head_dim=24, sliding_window=100),
    "mixtral": lambda: T.MixtralConfig(**BASE, num_local_experts=4),
    "qwen3-moe": lambda: T.Qwen3MoeConfig(
        **BASE, head_dim=24, num_experts=8, num_experts_per_tok=4, moe_intermediate_size=128
    ),
}


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(value) for value in tree_leaves((args, kwargs or {}))}
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            key = _storage(value)
            if key and key not in known and key not in self.live:
                storage = value.untyped_storage()
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def _storage(value: object) -> int:
    try:
        return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else 0
    except NotImplementedError:  # packed weights
        return 0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_activations_and_logits_are_estimated_from_above_but_not_by_far(family: str, fused: bool) -> None:
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    rng = np.random.default_rng(0)
    requests = [Request(row, rng.integers(8, 500, 300), max_tokens=3) for row in range(16)]
    with Engine(model, max_batch_tokens=700, max_running=16, fused=fused) as engine:
        forward = engine._runner.forward
        peak = 0

        def measured(batch: Any) -> torch.Tensor:
            nonlocal peak
            with LiveBytes() as live:
                logits = forward(batch)
            peak = max(peak, live.peak)
            return logits

        engine._runner.forward = measured  # type: ignore[method-assign]
        assert all(answer.error is None for answer in engine.generate(requests))
        estimate = engine.memory.activations + engine._runner.step_memory().logits(16)
        assert peak <= estimate <= 4 * peak


def step(**changes: Any) -> StepMemory:
    sizes: dict[str, Any] = {
        "hidden": 1024,
        "intermediate": 4096,
        "num_experts": 1,
        "heads": 16,
        "layer": LayerShape(4, 64, 64),
        "vocab_size": 32_000,
        "itemsize": 4,
        "keeps_scores": False,
        "kernels": False,
    }
    return StepMemory(**{**sizes, **changes})


def plan(free: int, monkeypatch: pytest.MonkeyPatch, kv: Any = None, tokens: int | None = None, **changes: Any) -> Any:
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    return memory.plan_memory(
        kv,
        tokens,
        max_running=256,
        step=step(**changes),
        bytes_per_token=2**14,
        block_size=16,
        context=4096,
        weights=2**30,
        device=torch.device("cpu"),
    )


def test_defaults_leave_room_for_both_and_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = plan(64 * 2**30, monkeypatch)
    assert roomy.max_batch_tokens == 1024
    assert roomy.num_blocks * 16 == memory.DEFAULT_KV_TOKENS
    tight = plan(2 * 2**30, monkeypatch)
    assert 64 <= tight.max_batch_tokens < 1024
    assert tight.kv + tight.activations + tight.logits <= 2 * 2**30 * 0.3
    assert tight.kv >= 2 * 2**30 * 0.15
    assert step().activations(tight.max_batch_tokens, 256, 4096) >= tight.activations > 0


def test_steps_become_smaller_before_a_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = plan(4 * 2**30, monkeypatch, kv="1GiB")
    narrow = plan(4 * 2**30, monkeypatch, kv="3.6GiB")
    assert wide.max_batch_tokens == 1024 > narrow.max_batch_tokens
    assert wide.kv == 2**30
    assert narrow.kv + narrow.activations + narrow.logits <= narrow.free
    assert plan(4 * 2**30, monkeypatch, kv="1GiB", tokens=500).max_batch_tokens == 500


@pytest.mark.parametrize(
    ("kv", "tokens"), [("3.99GiB", None), ("3GiB", 100_000), (None, 1_000_000)], ids=["pool", "both", "steps"]
)
def test_what_cannot_fit_is_refused_with_the_numbers(
    kv: str | None, tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MemoryBudgetError) as error:
        plan(4 * 2**30, monkeypatch, kv=kv, tokens=tokens)
    message = str(error.value)
    assert "4.0 GiB are free on cpu" in message
    assert f"of a step of {tokens or 64} tokens" in message
    for part in ("weights 1.0 GiB (loaded)", "KV pool", "activations", "logits", "lower kv_memory"):
        assert part in message


def test_an_engine_shows_its_plan_and_is_refused_before_it_starts() -> None:
    torch.manual_seed(0)
    model = T.LlamaForCausalLM(T.LlamaConfig(**BASE))
    with Engine(model, kv_memory="8MiB") as engine:
        assert engine.memory.kv <= 8 * 2**20 < engine.memory.kv + 16 * engine._runner.kv_bytes_per_token
        assert engine.memory.weights == sum(weight.nbytes for weight in model.parameters())
    with pytest.raises(MemoryBudgetError, match=r"activations [0-9.]+ TiB"):
        Engine(model, max_batch_tokens=2**40)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path: Path, version: int) -> None:
    if version == 2:
        (tmp_path / "memory.max").write_text("1000000\n")
        (tmp_path / "memory.current").write_text("700000\n")
        (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    else:
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory/memory.limit_in_bytes").write_text("1000000\n")
        (tmp_path / "memory/memory.usage_in_bytes").write_text("700000\n")
        (tmp_path / "memory/memory.stat").write_text("total_inactive_file 100000\n")
    assert memory._group_free(tmp_path) == 400_000
    assert memory._group_free(tmp_path / "nothing") is None
    limit = tmp_path / ("memory.max" if version == 2 else "memory/memory.limit_in_bytes")
    limit.write_text("max" if version == 2 else str(2**63 - 4096))
    assert memory._group_free(tmp_path) is None
