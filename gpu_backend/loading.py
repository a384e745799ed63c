"""Load a decoder-only transformers model with our attention function in every layer."""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .attention import ATTENTION_NAME
from .errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def resolve_dtype(dtype: str | torch.dtype, device: torch.device, model: object = None) -> torch.dtype:
    """`auto` is a model object's own; else float32 on the CPU and bfloat16 (float16 before Ampere) on CUDA."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if isinstance(model, transformers.PreTrainedModel):
            return model.dtype  # type: ignore[no-any-return]
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use 'auto', {', '.join(map(repr, _DTYPES))} or a torch.dtype")
    return _DTYPES[dtype]


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in evaluation mode on `device`, reading safetensors only; raises ModelError.

    A model object is not changed: we take a copy of its modules and configuration. The copy shares its weights where
    device and dtype agree.
    """
    if isinstance(model, transformers.PreTrainedModel):
        loaded = _adopt(model, device, dtype)
    else:
        loaded = _read(str(model), dtype, trust_remote_code).to(device)
    _check_forward(loaded)
    return loaded.eval()


def max_context(model: PreTrainedModel) -> int | None:
    """Positions the model was made for, or None when its configuration names no limit.

    With `dynamic` and `longrope` scaling the rotary angles of *all* tokens depend on the longest row of the batch, so
    that answers would depend on the batch; there we stop at the length up to which nothing is scaled.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope"):
        original = scaling.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        limit = original or limit
    return int(limit) if limit else None


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids at which `transformers.generate` stops: of the generation config, else of the model's config."""
    for config in (model.generation_config, model.config.get_text_config(), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(int(i) for i in ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()


def _read(name: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"no model folder at {name!r}: give a folder with config.json and *.safetensors, or a hub id")
    if is_folder:
        _check_folder(folder)
    else:
        _check_hub(name)
    source = str(folder) if is_folder else name
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise ModelError(f"cannot read the configuration of model {name!r}: {_first_line(error)}") from error
    _check_architecture(name, config)
    progress_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # the caller shows progress of its own
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            config=copy.deepcopy(config),
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=ATTENTION_NAME,
            **options,
        )
    except Exception as error:
        raise ModelError(f"cannot load model {name!r}: {_first_line(error)}") from error
    finally:
        if progress_bars:
            transformers.utils.logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {name!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}: the files do"
            " not belong to this configuration, or some are missing"
        )
    return model


def _adopt(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    _check_architecture(type(model).__name__, model.config)
    fits = model.device == device and model.dtype == dtype
    shared: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]} if fits else {}
    adopted: PreTrainedModel = copy.deepcopy(model, shared)
    if not fits:
        for parameter in adopted.parameters():  # not the buffers: rotary frequencies stay in float32
            parameter.data = parameter.data.to(dtype)
        adopted.to(device)
    try:
        adopted.set_attn_implementation(ATTENTION_NAME)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} takes no other attention: {_first_line(error)}") from error
    return adopted


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {str(folder)!r} has no config.json")
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in folder.glob(pattern))
        found = f"; it has {', '.join(others[:3])}, which the engine does not read" if others else ""
        raise ModelError(f"model folder {str(folder)!r} has no *.safetensors file{found}")


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


def _check_forward(model: PreTrainedModel) -> None:
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" not in accepted:
        raise ModelError(f"{type(model).__name__} takes no position_ids, which the engine needs to pack rows together")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
