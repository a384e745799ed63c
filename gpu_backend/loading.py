"""Load a decoder-only transformers model with our attention function in every layer."""

from __future__ import annotations

import copy
import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .attention import ATTENTION_NAME, no_interface
from .checkpoint import read_checkpoint
from .dtypes import resolve_dtype
from .errors import ModelError
from .file_pages import FilePages
from .placement import place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IGNORED = re.compile(r"rotary_emb|(^|\.)mtp\.|\.attn\.(masked_)?bias$")
"""Weights that a model runs well without: stored angles and masks, and heads for several tokens at once."""


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` is the first CUDA device where there is one, and the CPU otherwise."""
    if str(device) == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but torch sees no CUDA device; use device='cpu'")
    return torch.device("cuda", torch.cuda.current_device()) if str(resolved) == "cuda" else resolved


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    device: torch.device,
    dtype: str | torch.dtype,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in evaluation mode on `device`, reading safetensors only; raises ModelError.

    `dtype` is as `dtypes.resolve_dtype` takes it; `auto` is a model object's own. A model object is not changed: we
    take a copy of its modules and configuration, which shares its weights where device and dtype agree.
    """
    if isinstance(model, transformers.PreTrainedModel):
        loaded = _adopt(model, device, model.dtype if dtype == "auto" else resolve_dtype(dtype, device, None))
    else:
        loaded = _read(str(model), device, dtype, trust_remote_code)
    _check_forward(loaded)
    return loaded.eval()


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids at which `transformers.generate` stops: of the generation config, else of the model's config."""
    for config in (model.generation_config, model.config.get_text_config(), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(int(i) for i in ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()


def _read(name: str, device: torch.device, dtype: str | torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"no model folder at {name!r}: give a folder with config.json and *.safetensors, or a hub id")
    checkpoint = read_checkpoint(folder) if is_folder else None
    if checkpoint is None:
        _check_hub(name)
    source = str(folder) if is_folder else name
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise ModelError(f"cannot read the configuration of model {name!r}: {_first_line(error)}") from error
    _check_architecture(name, config)
    declared = getattr(config, "dtype", None)
    stored = (checkpoint.dtype if checkpoint is not None else None) or declared
    wanted = resolve_dtype(dtype, device, declared or stored)  # as transformers' "auto": the configuration goes first
    progress_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # the caller shows progress of its own
    try:
        # Weights of the file's own type are mapped, not read; `place` brings them to memory one at a time.
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            config=copy.deepcopy(config),
            dtype=stored or wanted,
            use_safetensors=True,
            attn_implementation=ATTENTION_NAME,
            **options,
        )
        if wanted != model.dtype:
            _compute_buffers(model, wanted)
        place(model, device, wanted, pages=FilePages(model.parameters()))
    except Exception as error:
        if isinstance(error, KeyError) and ATTENTION_NAME in str(error):
            raise ModelError(no_interface(", ".join(getattr(config, "architectures", None) or [name]))) from error
        raise ModelError(f"cannot load model {name!r}: {_first_line(error)}") from error
    finally:
        if progress_bars:
            transformers.utils.logging.enable_progress_bar()
    _check_weights(name, model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))
    return model


def _adopt(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    _check_architecture(type(model).__name__, model.config)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    adopted: PreTrainedModel = copy.deepcopy(model, shared)
    place(adopted, device, dtype)
    try:
        adopted.set_attn_implementation(ATTENTION_NAME)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} takes no other attention: {_first_line(error)}") from error
    return adopted


def _compute_buffers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Constants that modules have computed in the file's type, such as Gemma's factor, are computed in `dtype`."""
    rounded = [
        (path, name)
        for path, module in model.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
        if (buffer := module._buffers[name]) is not None and buffer.dtype == model.dtype
    ]
    if not rounded:
        return
    with torch.device("meta"):
        empty = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)
    for path, name in rounded:
        module = empty.get_submodule(path)
        buffer = torch.full_like(model.get_submodule(path)._buffers[name], float("nan"), dtype=dtype)
        module._buffers[name] = buffer
        owner = module if isinstance(module, transformers.PreTrainedModel) else empty
        owner._init_weights(module)
        if not buffer.isnan().any():
            model.get_submodule(path)._buffers[name] = buffer


def _check_weights(name: str, model: PreTrainedModel, missing: list[str], unexpected: list[str]) -> None:
    kind = type(model).__name__
    if missing:
        raise ModelError(
            f"model {name!r} lacks {len(missing)} weights of {kind}, such as {missing[0]}: the files do not belong to"
            " this configuration, or some are missing"
        )
    extra = [key for key in unexpected if key.endswith((".weight", ".bias")) and not _IGNORED.search(key)]
    if extra:
        raise ModelError(
            f"model {name!r} has {len(extra)} weights that {kind} does not take, such as {extra[0]}: without them it"
            " would answer differently; the files do not belong to this configuration"
        )


def _check_hub(name: str) -> None:
    """Fail at once, where transformers would try again for half a minute."""
    import huggingface_hub

    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
        huggingface_hub.HfApi().model_info(name, timeout=20)
    except Exception as error:
        raise ModelError(
            f"{name!r} is no model folder here, and no model of that name was found on the hub: {_first_line(error)}"
        ) from error


def _check_architecture(name: str, config: Any) -> None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {name!r} ({kind}) is an encoder-decoder; only decoder-only language models can be run")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    architectures = getattr(config, "architectures", None) or []
    other_task = bool(architectures) and not any("CausalLM" in a or "LMHead" in a for a in architectures)
    not_decoder = getattr(config, "is_decoder", None) is False and kind in ("bert", "roberta", "electra", "xlm-roberta")
    if (causal is None and not has_code) or (other_task and causal not in architectures) or not_decoder:
        what = ", ".join(architectures) or kind
        raise ModelError(
            f"model {name!r} ({what}) is not a decoder-only language model: the engine runs models of the kind"
            " LlamaForCausalLM"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise ModelError(
            f"model {name!r} is quantized ({getattr(method, 'value', method)}), which the engine does not support: use"
            " its weights in float32, bfloat16 or float16"
        )


def _check_forward(model: PreTrainedModel) -> None:
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" not in accepted:
        raise ModelError(f"{type(model).__name__} takes no position_ids, which the engine needs to pack rows together")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if "custom code" in text and "trust_remote_code" in text:
        return "it comes with Python code of its own, which runs only with trust_remote_code=True"
    return text.splitlines()[0] if text else type(error).__name__
