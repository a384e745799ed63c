"""Model folders: good ones give the same answers as the model object, bad ones say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from engine_models import generate_one, tiny_model, tree_prompts
from test_tokenizer import chatml

from llmsql.gpu_backend import Engine, ModelError, Request

SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    config = T.LlamaConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=3,
    )
    torch.manual_seed(1)
    T.LlamaForCausalLM(config).save_pretrained(path)
    chatml().save_pretrained(path)
    return path


def copy_of(folder: Path, target: Path, *, without: str = "") -> Path:
    for file in folder.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_folder_answers_texts_and_choices(folder: Path) -> None:
    with Engine(folder) as engine:
        tokenizer = engine.tokenizer
        before, after = tokenizer.chat_frame()
        prompt = np.concatenate([before, tokenizer.encode("Is it good?"), after])
        text, choice = engine.generate([Request(0, prompt, max_tokens=6), Request(1, prompt, choices=["Yes", "No"])])
        if text.id == 1:
            text, choice = choice, text
    model = T.AutoModelForCausalLM.from_pretrained(folder)
    assert list(text.token_ids) == generate_one(model, prompt, 6)
    assert text.text == tokenizer.decode([token for token in text.token_ids if token != 3])
    assert choice.text in ("Yes", "No")
    assert tokenizer.decode(choice.token_ids) == choice.text
    assert tokenizer.eos_token_ids == engine.eos_token_ids == (3,)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Engine(str(folder)) as engine:
        assert engine.tokenizer.additive
    assert capfd.readouterr() == ("", "")


def test_without_a_tokenizer_token_ids_still_work(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if "token" not in file.name and "chat" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with Engine(tmp_path) as engine:
        (answer,) = engine.generate([Request(0, [5, 6], max_tokens=3)])
        assert (answer.error, answer.text) == (None, "")
        with pytest.raises(ModelError, match=r"no tokenizer\.json"):
            _ = engine.tokenizer
    with Engine(tmp_path, tokenizer=folder) as engine:
        assert engine.tokenizer.decode(engine.tokenizer.encode("hi")) == "hi"
    with Engine(tiny_model()) as engine, pytest.raises(ModelError, match="comes without a tokenizer"):
        _ = engine.tokenizer


def test_folders_that_are_no_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder at '/no/such/folder'"):
        Engine("/no/such/folder")
    with pytest.raises(ModelError, match="'no-such-model' is no model folder here"):
        Engine("no-such-model")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        Engine(tmp_path)
    copy_of(folder, tmp_path, without="model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors file; it has pytorch_model\.bin"):
        Engine(tmp_path)


def test_a_truncated_file_and_a_missing_weight(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy_of(folder, tmp_path) / "model.safetensors"
    whole = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load model"):
        Engine(tmp_path)
    del whole["model.layers.1.mlp.up_proj.weight"]
    save_file(whole, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        Engine(tmp_path)


def test_a_config_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    config = copy_of(folder, tmp_path) / "config.json"
    config.write_text("{")
    with pytest.raises(ModelError, match="cannot read the configuration"):
        Engine(tmp_path)
    config.write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="cannot read the configuration"):
        Engine(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.BertForMaskedLM(T.BertConfig(**SMALL, intermediate_size=16)), "not a decoder-only"),
        (lambda: T.T5ForConditionalGeneration(T.T5Config(vocab_size=60, d_model=16, num_layers=1)), "encoder-decoder"),
        (lambda: T.MambaForCausalLM(T.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)), "position_ids"),
        (lambda: T.BloomForCausalLM(T.BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2)), "position_ids"),
    ],
    ids=["encoder", "encoder-decoder", "recurrent", "alibi"],
)
def test_architectures_that_cannot_be_run(make: Any, message: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        Engine(tmp_path)


def test_a_model_whose_attention_needs_more_than_we_do() -> None:
    config = T.GptOssConfig(
        **SMALL, head_dim=8, num_key_value_heads=1, intermediate_size=16, num_local_experts=2, num_experts_per_tok=1
    )
    with pytest.raises(ModelError, match="uses s_aux"):
        Engine(T.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(("option", "message"), [("device", "unknown device"), ("dtype", "unknown dtype")])
def test_unknown_devices_and_dtypes(option: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Engine(tiny_model(), **{option: "quantum"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        Engine(tiny_model(), device="cuda")


def test_rope_scaling_that_depends_on_the_batch_limits_the_context() -> None:
    config = T.LlamaConfig(
        **SMALL,
        intermediate_size=16,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    with Engine(T.LlamaForCausalLM(config)) as engine:
        assert engine.max_context == 64


def test_bfloat16_runs(folder: Path) -> None:
    with Engine(folder, dtype="bfloat16") as engine:
        prompts = tree_prompts(8)
        done = list(engine.generate(Request(row, prompt, max_tokens=4) for row, prompt in enumerate(prompts)))
    assert all(answer.error is None and len(answer.token_ids) > 0 for answer in done)
