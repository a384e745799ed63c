"""How long a row may be: the model's positions, as far as their angles do not depend on other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_DEPENDS = "the positions of models with {kind} scaling depend on the longest row of the batch"


@dataclass(frozen=True)
class Context:
    """Prompt and output of one row together."""

    length: int | None
    """Tokens at most; None when the model's configuration names no limit."""
    reason: str = ""
    """Why this is less than the model was made for, to be said after the number."""


def read_context(model: PreTrainedModel) -> Context:
    """The positions that the model was made for, cut off where rotary frequencies begin to depend on the longest row.

    With `dynamic` and `longrope` scaling transformers turns *all* tokens by frequencies that follow from the longest
    row, so a row's answer would depend on the batch, and a prefix on who shares it. Up to the unscaled length they are
    fixed. (Alone, a longer row would be turned by its own length, and could share nothing with rows of another length.)
    """
    return context_of(model.config)


def load_context(source: str, *, trust_remote_code: bool = False) -> Context:
    """The context of a model folder or hub id, read from its configuration alone; raises ModelError."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"cannot read the configuration of {source!r}: {error}") from error
    return context_of(config)


def context_of(model_config: PretrainedConfig) -> Context:
    """As `read_context`, from a model's configuration."""
    config = model_config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not length:
        return Context(None)
    length = int(length)
    for rope in _rope_parameters(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":  # grows beyond the length in the configuration
            return Context(length, f"; beyond that, {_DEPENDS.format(kind=kind)}")
        unscaled = int(_original(rope, config) or length)
        if kind == "longrope" and unscaled < length:
            return Context(unscaled, f" of its {length}: beyond them, {_DEPENDS.format(kind=kind)}")
    return Context(length)


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The scaling of each kind of layer; most models have one kind."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _original(rope: dict[str, Any], config: Any) -> int | None:
    name = "original_max_position_embeddings"
    return rope.get(name) or getattr(config, name, None)
