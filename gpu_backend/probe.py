"""The first forward pass of a model: what its layers keep, and that they attend as the engine does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from .errors import ModelError
from .kv_cache import LayerAttention, LayerShape

PROBE_NAME = "llmsql_probe"
"""The name under which transformers knows the attention function of the first pass."""

_NOT_SUPPORTED = ("s_aux", "position_bias", "alibi", "cu_seq_lens_k_bias")
_MANY_POSITIONS = 2**20
_RULE = "llmsql_rule"

_Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Whether queries at positions see keys at positions; all that transformers says with a mask."""


class ShapeProbe:
    """Records what each layer keeps, and how it attends."""

    def __init__(self, context: int | None) -> None:
        """`context` is how long a row may be."""
        self.shapes: dict[int, LayerShape] = {}
        self.attention: list[LayerAttention] = []
        self._last = (context or _MANY_POSITIONS) - 1

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A forward pass by `PROBE_NAME` is recorded meanwhile; raises ModelError for what cannot be run."""
        token = _probe.set(self)
        try:
            yield
        finally:
            _probe.reset(token)

    def see(
        self, module: Any, shape: LayerShape, attention: LayerAttention, mask: torch.Tensor | None, others: Any
    ) -> None:
        """Take note of a layer."""
        kind, layer = type(module).__name__, module.layer_idx
        if not getattr(module, "is_causal", True):
            raise ModelError(f"{kind} looks at later tokens: only decoder-only language models can be run")
        for name in _NOT_SUPPORTED:
            if others.get(name) is not None:
                raise ModelError(f"{kind} uses {name}, which the engine does not support")
        if layer in self.shapes:
            raise ModelError(f"{kind} attends more than once in a layer, which the engine does not support")
        if mask is not None:
            self._check_mask(kind, mask, attention.window)
        self.shapes[layer] = shape
        self.attention.append(attention)

    def _check_mask(self, kind: str, mask: torch.Tensor, window: int | None) -> None:
        """The mask must say what `window` says: keys up to the query, and no further back."""
        rule: _Rule | None = getattr(mask, _RULE, None)
        if rule is None:
            raise ModelError(f"{kind} brings an attention mask of its own, which the engine does not support")
        size: int | None = getattr(mask, "llmsql_size", None)
        edges = {0, 1, self._last, *(edge + by for edge in (window, size) if edge for by in (-1, 0, 1))}
        places = torch.tensor(sorted(edge for edge in edges if 0 <= edge <= self._last))
        queries, keys = places[:, None], torch.cat([places, (self._last - places).clamp(min=0)])[None]
        expected = (keys <= queries) & (keys > queries - (window or self._last + 1))
        if not torch.equal(rule(queries, keys).expand_as(expected), expected):
            raise ModelError(
                f"{kind} brings an attention mask of its own that hides more, such as chunks or a window that only the"
                " mask knows; the engine does not support it"
            )


_probe: ContextVar[ShapeProbe] = ContextVar("probe")


def _attention(
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
    """As `attention_forward`, but nothing is attended."""
    shape = LayerShape(key.shape[1], key.shape[3], value.shape[3])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _probe.get().see(module, shape, LayerAttention(scale, sliding_window, softcap), attention_mask, others)
    return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None


def _mask(
    mask_function: Callable[..., torch.Tensor], device: torch.device, local_size: int | None = None, **_: Any
) -> torch.Tensor:
    """A mask that hides nothing and carries the rule by which transformers would make one."""
    zero = torch.zeros((), dtype=torch.int64, device=device)

    def rule(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return mask_function(zero, zero, queries.to(device), keys.to(device)).cpu()

    mask = torch.zeros(1, 1, 1, 1, device=device)
    setattr(mask, _RULE, rule)
    mask.llmsql_size = local_size  # type: ignore[attr-defined]
    return mask


AttentionInterface.register(PROBE_NAME, _attention)
AttentionMaskInterface.register(PROBE_NAME, _mask)
