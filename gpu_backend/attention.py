"""The attention function of every model: write the step's KV into the pool, then attend over the prefix tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, PreTrainedModel

if TYPE_CHECKING:
    from .kernel_attention import KernelAttention
    from .step_attention import StepAttention

ATTENTION_NAME = "llmsql_paged"
"""The name under which transformers knows `attention_forward`."""

_step: ContextVar[StepAttention | KernelAttention] = ContextVar("step")


@contextmanager
def attending(step: StepAttention | KernelAttention) -> Iterator[None]:
    """`attention_forward` works with this step meanwhile. Models need not hand it on: some lose keywords on the way."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model's layers attend by transformers' function of another name meanwhile.

    Without `set_attn_implementation`, which refuses code that does not read as transformers' own.
    """
    configs = list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME


def no_interface(kind: str) -> str:
    """What to say of a model whose attention cannot be replaced."""
    return (
        f"{kind} brings attention of its own instead of calling transformers' attention interface, as some older"
        " architectures and those with ALiBi do; the engine cannot run it"
    )


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, key_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, key_dim]
    value: torch.Tensor,  # [1, kv_heads, tokens, value_dim]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; returns [1, tokens, heads, value_dim] and no weights.

    What else a model may ask for is looked at when it is loaded; see `ShapeProbe`.
    """
    step = _step.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    step.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = step.attend(
        layer,
        query[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


AttentionInterface.register(ATTENTION_NAME, attention_forward)
