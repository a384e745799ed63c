"""The fused decoder against `transformers.generate` and against transformers' modules in the engine."""

from __future__ import annotations

import copy
import logging
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from decoder_variants import MIXTURES, VARIANTS, variant
from engine_models import CONFIGS, generate_one, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request, decoder_families, model_runner, parity
from llmsql.gpu_backend.gated_linear import MergedGate, PackedGate
from llmsql.gpu_backend.kernel_choice import why_not_native
from llmsql.gpu_backend.linear import PackedLinear, SplitLinear, can_pack
from llmsql.gpu_backend.native_linear import NativeEmbedding, NativeGate, NativeLinear
from llmsql.gpu_backend.operators import TorchOperators
from llmsql.gpu_backend.readout import NOT_A_NUMBER

MAX_TOKENS = 6
PROMPTS = tree_prompts(8, seed=2)
NO_ONEDNN = not can_pack(torch.empty(0))
PACKED = [
    pytest.param("torch", PackedGate, PackedLinear, marks=pytest.mark.skipif(NO_ONEDNN, reason="no oneDNN")),
    pytest.param("native", NativeGate, NativeLinear, marks=pytest.mark.skipif(bool(why_not_native()), reason="no C++")),
]
"""Which products a decoder has on the CPU."""
FUSED = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]


@cache
def reference(name: str) -> list[list[int]]:
    return [generate_one(variant(name), prompt, MAX_TOKENS) for prompt in PROMPTS]


def run(engine: Engine, prompts: list[np.ndarray] = PROMPTS) -> list[list[int]]:
    answers = {}
    for done in engine.generate(Request(row, ids, max_tokens=MAX_TOKENS) for row, ids in enumerate(prompts)):
        assert done.error is None
        answers[done.id] = list(done.token_ids)
    engine.check()
    return [answers[row] for row in range(len(prompts))]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_fused_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "_MIN_SKIPPED_TOKENS", {"cpu": 1})
    assert len(set(map(tuple, reference(name)))) > len(PROMPTS) // 2, "it says the same to everything"
    with Engine(variant(name)) as engine:
        assert engine.decoder == "fused"
        assert run(engine) == reference(name)
        assert [run(engine, [prompt])[0] for prompt in PROMPTS[:3]] == reference(name)[:3], "one at a time"
    with Engine(variant(name), prefix_sharing=False, max_batch_tokens=50) as engine:
        assert run(engine) == reference(name)
    with Engine(variant(name), kernels="torch") as engine:
        assert engine.decoder == "fused"
        assert run(engine) == reference(name)
    with Engine(variant(name), fused=False) as engine:
        assert engine.decoder == "transformers"
        assert run(engine) == reference(name)


@pytest.mark.parametrize("name", MIXTURES)
def test_other_architectures_run_by_transformers_modules(name: str) -> None:
    for switches in ({}, {"prefix_sharing": False, "max_batch_tokens": 50}):
        with Engine(variant(name), **switches) as engine:
            assert engine.decoder == "transformers"
            assert run(engine) == reference(name)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_family_is_fused_in_every_type(name: str, dtype: torch.dtype) -> None:
    with Engine(tiny_model(name), dtype=dtype) as engine:
        assert engine.decoder == "fused"
        assert engine.dtype == dtype


def test_choices_of_several_tokens_through_a_cut_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [[5, 9, 4], [5, 9], [5, 8, 8, 8], [11]]
    scores = []
    for minimum in (1, 10**9):
        monkeypatch.setattr(model_runner, "_MIN_SKIPPED_TOKENS", {"cpu": minimum})
        with Engine(variant("biases")) as engine:
            requests = [Request(row, ids, choices=choices) for row, ids in enumerate(PROMPTS)]
            done = {answer.id: answer.log_probs for answer in engine.generate(requests)}
            scores.append([done[row] for row in range(len(PROMPTS))])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


def test_a_step_that_reads_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "_MIN_SKIPPED_TOKENS", {"cpu": 1})
    with Engine(variant("biases"), max_batch_tokens=3) as engine:  # most steps hold a piece of a prompt
        assert run(engine) == reference("biases")


# The decoder is used only where it computes the same.


class Wrong(TorchOperators):
    """A decoder that computes something else."""

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return super().silu_and_mul(gate_up) * 1.05


def test_a_decoder_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(model_runner, "TorchOperators", Wrong)
    with caplog.at_level(logging.WARNING), Engine(variant("biases"), kernels="torch") as engine:
        assert engine.decoder == "transformers"
        assert run(engine) == reference("biases"), "the modules have their weights back"
    (record,) = caplog.records
    assert "logits of the fused decoder differ by" in record.getMessage()
    assert "LlamaForCausalLM runs by transformers' modules" in record.getMessage()


class Subclass(T.LlamaForCausalLM):
    """A model of which we cannot know what it computes."""


def _hooked(model: Any) -> Any:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def _adapted(model: Any) -> Any:
    class Adapter(torch.nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj = Adapter(32, 48, bias=False)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Subclass(CONFIGS["llama"]()), "Subclass is not one of the families Llama, Qwen2"),
        (lambda: tiny_model("phi3"), "Phi3ForCausalLM is not one of the families"),
        (lambda: _hooked(copy.deepcopy(tiny_model())), "layers.0.mlp of LlamaForCausalLM is changed by hooks"),
        (lambda: _adapted(copy.deepcopy(tiny_model())), "up_proj of LlamaForCausalLM is a .*Adapter"),
        (
            lambda: T.LlamaForCausalLM(T.LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "hidden_act": "relu"})),
            "LlamaForCausalLM has the activation 'relu'",
        ),
    ],
)
def test_models_that_are_not_fused_say_why(make: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make().eval()
    with caplog.at_level(logging.INFO, logger="llmsql"), Engine(model) as engine:
        assert engine.decoder == "transformers"
        assert run(engine, PROMPTS[:2]) == [generate_one(model, prompt, MAX_TOKENS) for prompt in PROMPTS[:2]]
    assert re.search(reason, caplog.text)


def test_the_difference_of_logits() -> None:
    one = torch.tensor([[3.0, 4.0], [0.0, float("nan")]])
    assert parity.difference(one, one) == 0.0
    assert parity.difference(one, torch.tensor([[3.0, 4.5], [0.0, float("nan")]])) == pytest.approx(0.1)
    assert parity.difference(one, torch.nan_to_num(one)) == float("inf")
    assert parity.difference(torch.full((1, 2), float("nan")), torch.full((1, 2), float("nan"))) == 0.0
    assert parity.difference(torch.ones(2, 2), torch.zeros(2, 2)) == 1.0


def test_sample_steps_hold_shared_prompts_pieces_and_decoded_tokens() -> None:
    steps = [step.batch for step in parity.sample_steps(50, None)]
    lengths = [np.diff(step.table.query_start).tolist() for step in steps]
    assert any(1 in step and max(step) > 4 for step in lengths), "prompts and decoded tokens in one step"
    assert any(len(step.logit_index) < len(step.token_ids) for step in steps)
    assert any((np.bincount(step.table.path_nodes) > 2).any() for step in steps), "a node that several rows read"
    for context in (1, 2, 5):
        assert max(int(step.batch.positions.max()) for step in parity.sample_steps(50, context)) < max(context, 2)


# Whose memory the weights take.


@pytest.mark.parametrize(("kernels", "gate", "linear"), PACKED)
def test_the_weights_are_held_once(tmp_path: Any, kernels: str, gate: type, linear: type) -> None:
    variant("biases").save_pretrained(tmp_path)
    with Engine(tmp_path, dtype="float32", kernels=kernels) as engine:
        model, decoder = engine._runner.model, engine._runner.decoder
        assert decoder is not None
        layer = decoder.layers[0]
        assert isinstance(layer.gate_up, gate)
        assert isinstance(layer.down, linear)
        assert model.model.layers[0].mlp.gate_proj.weight.numel() == 0
        assert model.lm_head.weight.numel() == 0
        assert decoder.embedding.weight is model.model.embed_tokens.weight


@pytest.mark.skipif(bool(why_not_native()), reason="no C++")
def test_a_tied_weight_is_held_once_and_given_back(tmp_path: Any) -> None:
    variant("tied").save_pretrained(tmp_path)
    with Engine(tmp_path, dtype="float32", kernels="native") as engine:
        model, decoder = engine._runner.model, engine._runner.decoder
        assert decoder is not None
        assert isinstance(decoder.embedding, NativeEmbedding)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight.numel() == 0
        assert run(engine) == reference("tied")
        decoder.restore()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, variant("tied").lm_head.weight)


@pytest.mark.parametrize(("kernels", "gate", "linear"), PACKED)
def test_a_model_objects_weights_are_copied_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, kernels: str, gate: type, linear: type
) -> None:
    model = variant("biases")
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in model.named_parameters()}
    for free, kinds in ((10**12, (gate, linear)), (10_000, (MergedGate, SplitLinear))):
        monkeypatch.setattr(model_runner, "free_memory", lambda device, free=free: free)
        with Engine(model, kernels=kernels) as engine:
            assert engine.decoder == "fused"
            decoder = engine._runner.decoder
            assert decoder is not None
            assert (type(decoder.layers[0].gate_up), type(decoder.layers[0].down)) == kinds
            assert run(engine) == reference("biases")
    for name, weight in model.named_parameters():
        assert weight.data_ptr() == before[name][0]
        assert torch.equal(weight, before[name][1])


def test_the_families_exist() -> None:
    for family in decoder_families.FAMILIES:
        assert hasattr(T, f"{family}ForCausalLM")


def test_weights_that_are_not_numbers_fail_requests_and_not_the_check() -> None:
    model = copy.deepcopy(tiny_model())
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with Engine(model) as engine:
        assert engine.decoder == "fused"
        done = list(engine.generate([Request(0, PROMPTS[0], max_tokens=3), Request(1, PROMPTS[1], choices=[[5], [6]])]))
        assert all(answer.error == NOT_A_NUMBER for answer in done)
        engine.check()
