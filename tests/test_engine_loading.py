"""Model folders: good ones give the same answers as the model object, bad ones say what is wrong."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from engine_models import generate_one, tiny_model, tree_prompts
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_tokenizer import chatml

from llmsql.gpu_backend import Engine, ModelError, Request, dtypes
from llmsql.gpu_backend.file_pages import FilePages
from llmsql.gpu_backend.placement import place

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
    with pytest.raises(ModelError, match=r"has no model\.safetensors .*; it has pytorch_model\.bin, which"):
        Engine(tmp_path)


def test_a_truncated_file_and_a_missing_weight(folder: Path, tmp_path: Path) -> None:
    weights = copy_of(folder, tmp_path) / "model.safetensors"
    whole = load_file(weights)
    content = weights.read_bytes()
    for cut, message in [
        (content[:-100], r"model\.safetensors' is cut off: \d+ bytes, but its header describes"),
        (content[:30], r"model\.safetensors' is not a safetensors file, or is cut off within its header \(30 bytes\)"),
        (b"", r"cut off within its header \(0 bytes\)"),
        (content[:8] + b"x" + content[9:], r"model\.safetensors' is not a safetensors file: its header cannot be read"),
        (content.replace(b'"F32"', b'"F99"'), "cannot load model"),
    ]:
        weights.write_bytes(cut)
        with pytest.raises(ModelError, match=message):
            Engine(tmp_path)
    del whole["model.layers.1.mlp.up_proj.weight"]
    save_file(whole, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        Engine(tmp_path)


def test_weights_that_the_configuration_does_not_know(folder: Path, tmp_path: Path) -> None:
    weights = copy_of(folder, tmp_path) / "model.safetensors"
    whole = load_file(weights)
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "mtp.0.weight": torch.ones(4)}
    save_file({**whole, **harmless}, weights, metadata={"format": "pt"})
    with Engine(tmp_path) as engine, Engine(folder) as other:
        assert answers(engine) == answers(other)
    save_file({**whole, "model.layers.0.mlp.up_proj.bias": torch.ones(48)}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has 1 weights that LlamaForCausalLM does not take, such as .*up_proj\.bias"):
        Engine(tmp_path)
    save_file({**whole, "model.norm.weight": torch.ones(31)}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot load model"):
        Engine(tmp_path)


def test_several_files(folder: Path, tmp_path: Path) -> None:
    model = T.AutoModelForCausalLM.from_pretrained(folder)
    copy_of(folder, tmp_path, without="model.safetensors")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    with Engine(tmp_path) as engine, Engine(folder) as other:
        assert answers(engine) == answers(other)
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-1])
    with pytest.raises(ModelError, match=rf"{shards[1].name}' is cut off"):
        Engine(tmp_path)
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of the {len(shards)} files, such as {shards[1].name}, named in"):
        Engine(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json' is not a list of weights"):
        Engine(tmp_path)


def answers(engine: Engine) -> list[tuple[int, ...]]:
    done = engine.generate(Request(row, prompt, max_tokens=4) for row, prompt in enumerate(tree_prompts(6)))
    return [answer.token_ids for answer in sorted(done, key=lambda answer: str(answer.id))]


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
        (lambda: T.FalconForCausalLM(T.FalconConfig(**SMALL, alibi=True)), "FalconForCausalLM brings attention of its"),
        (
            lambda: T.GPTJForCausalLM(T.GPTJConfig(vocab_size=60, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)),
            "GPTJForCausalLM brings attention",
        ),
        (lambda: T.Lfm2ForCausalLM(hybrid_config()), "only 1 of the 2 layers of Lfm2ForCausalLM"),
        (lambda: T.LlavaForConditionalGeneration(vision_config()), "not a decoder-only language model"),
    ],
    ids=["encoder", "encoder-decoder", "recurrent", "alibi", "alibi-2", "old", "hybrid", "vision"],
)
def test_architectures_that_cannot_be_run(make: Any, message: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        Engine(tmp_path)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "config_groups": {}},
    ],
    ids=lambda quantization: quantization["quant_method"],
)
def test_quantized_weights_are_refused(folder: Path, tmp_path: Path, quantization: dict[str, Any]) -> None:
    path = copy_of(folder, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))
    with pytest.raises(ModelError, match=rf"is quantized \({quantization['quant_method']}\), which the engine"):
        Engine(tmp_path)


def test_code_that_comes_with_a_model_runs_only_if_allowed(folder: Path, tmp_path: Path) -> None:
    path = copy_of(folder, tmp_path) / "config.json"
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "code.py").write_text("raise SystemExit('the code ran')\n")
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "auto_map": code}))
    with Engine(tmp_path) as engine, Engine(folder) as other:  # transformers has code of its own
        assert answers(engine) == answers(other)
    path.write_text(json.dumps({**known, "auto_map": code, "model_type": "of-its-own"}))
    with pytest.raises(ModelError, match="code of its own, which runs only with trust_remote_code=True"):
        Engine(tmp_path)


CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "of-its-own"

class Attention(nn.Module):  # of code that has a class like this, transformers expects its own idioms
    pass

class ModelForCausalLM(LlamaForCausalLM):
    config_class = Config
"""


def test_code_that_comes_with_a_model_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of(folder, tmp_path) / "config.json"
    (tmp_path / "its_own_code.py").write_text(CODE)
    code = {"AutoConfig": "its_own_code.Config", "AutoModelForCausalLM": "its_own_code.ModelForCausalLM"}
    own = {"auto_map": code, "model_type": "of-its-own", "architectures": ["ModelForCausalLM"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    modules = str(tmp_path / "modules")
    monkeypatch.setattr(T.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with Engine(tmp_path, trust_remote_code=True) as engine, Engine(folder) as other:
        assert engine.decoder == "transformers"
        assert answers(engine) == answers(other)


def hybrid_config() -> Any:
    return T.Lfm2Config(
        **{**SMALL, "num_hidden_layers": 2}, intermediate_size=16, num_key_value_heads=2, full_attn_idxs=[1]
    )


def vision_config() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return T.LlavaConfig(
        text_config=T.LlamaConfig(**SMALL, intermediate_size=16),
        vision_config=T.CLIPVisionConfig(**vision, image_size=28, patch_size=14),
    )


def test_a_model_object_of_an_architecture_that_cannot_be_run() -> None:
    with pytest.raises(ModelError, match="GPTJForCausalLM brings attention of its own"):
        Engine(T.GPTJForCausalLM(T.GPTJConfig(vocab_size=60, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)))


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
        (answer,) = engine.generate([Request(0, list(range(60)), max_tokens=5)])
    assert "context holds 64 tokens; beyond that, the positions of models with dynamic scaling" in str(answer.error)


def test_rope_scaling_of_one_kind_of_layer_limits_the_context() -> None:
    longrope = {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    config = T.Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        intermediate_size=16,
        num_key_value_heads=1,
        max_position_embeddings=128,
        layer_types=["full_attention"],
        rope_parameters={"full_attention": longrope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    )
    with Engine(T.Gemma3ForCausalLM(config)) as engine:
        assert engine.max_context == 32
        short, long = engine.generate([Request(0, [3] * 30, max_tokens=2), Request(1, [3] * 30, max_tokens=3)])
    assert (short if short.id == 0 else long).error is None
    assert "context holds 32 tokens of its 128: beyond them, the" in str((short if short.id == 1 else long).error)


@pytest.mark.parametrize(
    ("checkpoint", "native", "expected"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_auto_is_the_checkpoints_type_where_the_processor_computes_in_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: torch.dtype,
    native: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(dtypes, "cpu_computes_bfloat16", lambda: native)
    model = T.AutoModelForCausalLM.from_pretrained(folder).to(checkpoint)
    model.save_pretrained(tmp_path)
    with Engine(tmp_path) as engine:
        assert engine.dtype == expected
    with Engine(tmp_path, dtype="float32") as engine:
        assert engine.dtype == torch.float32
    if checkpoint != torch.float16:
        with Engine(model) as engine:
            assert engine.dtype == checkpoint, "a model object keeps its own"


def test_what_the_processor_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, native in [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda now=capabilities: now, raising=False)
        assert dtypes.cpu_computes_bfloat16() is native


def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for ampere in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, now=ampere: now)
        half = torch.bfloat16 if ampere else torch.float16
        assert dtypes.resolve_dtype("auto", cuda, torch.bfloat16) == half
        assert dtypes.resolve_dtype("auto", cuda, torch.float32) == half
        assert dtypes.resolve_dtype("auto", cuda, torch.float16) == torch.float16
    assert dtypes.resolve_dtype("float32", cuda, torch.bfloat16) == torch.float32
    with pytest.raises(ModelError, match=r"not run in torch\.float64"):
        dtypes.resolve_dtype(torch.float64, cuda, None)


def test_weights_are_replaced_and_not_changed() -> None:
    model = tiny_model("qwen2")  # tied
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    adopted = copy.deepcopy(model, shared)
    place(adopted, torch.device("meta"), torch.bfloat16)
    assert {(weight.device.type, weight.dtype) for weight in adopted.parameters()} == {("meta", torch.bfloat16)}
    assert adopted.lm_head.weight is adopted.model.embed_tokens.weight
    assert {buffer.dtype for buffer in adopted.buffers()} == {torch.float32}
    assert before == {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert model.dtype == torch.float32


def resident(weight: torch.Tensor) -> int:
    """Kilobytes of the weight's mapping that are in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for number, line in enumerate(lines):
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if start <= weight.data_ptr() < end:
                return next(int(field.split()[1]) for field in lines[number:] if field.startswith("Rss:"))
    raise AssertionError("not mapped")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are given back on Linux only")
def test_pages_of_weight_files_are_given_back(tmp_path: Path) -> None:
    weight = torch.randn(512, 1024)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        mapped = file.get_tensor("weight")
    pages = FilePages([mapped, weight, torch.empty(0)])
    assert torch.equal(mapped, weight)
    assert resident(mapped) >= 2048
    pages.drop()
    assert resident(mapped) < 1024
    assert torch.equal(mapped, weight)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are given back on Linux only")
def test_the_files_head_does_not_stay_in_memory_beside_the_packed_one(tmp_path: Path) -> None:
    config = T.LlamaConfig(**{**SMALL, "vocab_size": 65536, "hidden_size": 64}, intermediate_size=16)
    T.LlamaForCausalLM(config).save_pretrained(tmp_path)  # 16 MiB of embeddings, and as much for the head
    with Engine(tmp_path, kv_memory="1MB") as engine:
        decoder = engine._runner.decoder
        assert decoder is not None
        assert resident(decoder.embedding.weight) < 24 * 1024, "the embeddings, and not the head"


def test_changes_to_a_mapped_model_object_are_kept(folder: Path) -> None:
    model = T.AutoModelForCausalLM.from_pretrained(folder)
    for weight in model.parameters():
        weight.data += 0.01
    before = [weight.clone() for weight in model.parameters()]
    for dtype in ("auto", "bfloat16"):
        with Engine(model, dtype=dtype) as engine:
            assert engine.decoder == "fused"
    assert all(torch.equal(weight, kept) for weight, kept in zip(model.parameters(), before))


def test_weights_that_stay_in_float32() -> None:
    model = copy.deepcopy(tiny_model())
    model._keep_in_fp32_modules_strict = {"layers.1.mlp"}
    place(model, torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in model.model.layers[1].mlp.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.model.layers[0].mlp.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3nText"])
def test_constants_of_the_code_are_not_rounded_to_the_files_type(family: str, tmp_path: Path) -> None:
    small = {**SMALL, "hidden_size": 14, "num_key_value_heads": 1, "intermediate_size": 16, "head_dim": 8}
    if family == "Gemma3nText":
        small |= {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 60, "intermediate_size": [16]}
        small |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0], "laurel_rank": 2}
    torch.manual_seed(0)
    config = getattr(T, f"{family}Config")(**small, initializer_range=0.4)
    T.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = T.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = [9, 20, 33, 4]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).max()
    with Engine(tmp_path, dtype="float32") as engine:
        (answer,) = engine.generate([Request(0, prompt, max_tokens=1, return_log_probs=True)])
    assert answer.log_probs == pytest.approx([float(expected)], abs=1e-5)


def test_bfloat16_runs(folder: Path) -> None:
    with Engine(folder, dtype="bfloat16") as engine:
        prompts = tree_prompts(8)
        done = list(engine.generate(Request(row, prompt, max_tokens=4) for row, prompt in enumerate(prompts)))
    assert all(answer.error is None and len(answer.token_ids) > 0 for answer in done)
