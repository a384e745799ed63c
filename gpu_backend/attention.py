"""The attention function of every model: write the step's KV into the pool, then attend over the prefix tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from .errors import ModelError
from .kv_cache import LayerAttention, LayerShape

if TYPE_CHECKING:
    from .kernel_attention import KernelAttention
    from .step_attention import StepAttention

ATTENTION_NAME = "llmsql_paged"
"""The name under which transformers knows `attention_forward`."""


class ShapeProbe:
    """Stands in for `StepAttention` in the first forward pass: records what each layer keeps, and how it attends."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.attention: list[LayerAttention] = []


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, key_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, key_dim]
    value: torch.Tensor,  # [1, kv_heads, tokens, value_dim]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    llmsql_step: StepAttention | KernelAttention | ShapeProbe | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; returns [1, tokens, heads, value_dim] and no weights.

    `llmsql_step` is the keyword that the model runner gives to the model.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(llmsql_step, ShapeProbe):
        _check_supported(module, attention_mask, others)
        llmsql_step.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        llmsql_step.attention.append(LayerAttention(scale, sliding_window, softcap))
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None
    assert llmsql_step is not None, "the model must be called by the engine's model runner"
    llmsql_step.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = llmsql_step.attend(
        layer,
        query[0].transpose(0, 1),
        scale=scale,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


AttentionInterface.register(ATTENTION_NAME, attention_forward)


def _check_supported(module: torch.nn.Module, attention_mask: torch.Tensor | None, others: dict[str, Any]) -> None:
    kind = type(module).__name__
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{kind} looks at later tokens: only decoder-only language models can be run")
    if attention_mask is not None:
        raise ModelError(f"{kind} brings an attention mask of its own, which the engine does not support")
    for name in ("s_aux", "position_bias", "alibi", "cu_seq_lens_k_bias"):
        if others.get(name) is not None:
            raise ModelError(f"{kind} uses {name}, which the engine does not support")
