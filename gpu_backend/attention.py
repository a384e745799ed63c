"""The attention function of every model: write the step's KV into the pool, then attend over the prefix tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface

from .batch import StepBatch
from .cascade import Plan, Planner
from .errors import ModelError
from .kv_cache import KVCache, LayerAttention, LayerShape

if TYPE_CHECKING:
    from .kernel_attention import KernelAttention

ATTENTION_NAME = "llmsql_paged"
"""The name under which transformers knows `attention_forward`."""

_flash_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@dataclass(frozen=True)
class _PrivateTensors:
    queries: torch.Tensor  # [rows, queries]
    slots: torch.Tensor  # [rows * keys]
    mask: torch.Tensor | None  # [rows, 1, queries * group, keys] added to the scores


@dataclass(frozen=True)
class _SharedTensors:
    queries: torch.Tensor | slice  # [queries]
    slots: torch.Tensor | slice  # [keys]
    mask: torch.Tensor | None  # [1, 1, queries * group, keys]


class StepAttention:
    """One step's attention metadata, made once and used by every layer; `KernelAttention` is its twin in Triton."""

    def __init__(self, batch: StepBatch, cache: KVCache, *, cascade: bool, device: torch.device) -> None:
        self.cache = cache
        self.slots = torch.from_numpy(batch.slots).to(device)
        self._plans: dict[tuple[int | None, int], tuple[list[_PrivateTensors], list[_SharedTensors]]] = {}
        self._planner = Planner(batch.table, batch.block_size, cascade=cascade)
        self._device = device

    def write(
        self,
        layer: int,
        key: torch.Tensor,  # [tokens, kv_heads, key_dim]
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    ) -> None:
        """Store the step's keys and values of one layer."""
        self.cache.write(layer, self.slots, key, value)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [tokens, heads, key_dim]
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of all query tokens of the step, [tokens, heads, value_dim]; the step's KV must be written."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return self._cascade(query, keys, values, scale=scale, window=window, softcap=softcap)

    def _cascade(
        self,
        query: torch.Tensor,  # [tokens, heads, key_dim]
        keys: torch.Tensor,  # [num_slots, kv_heads, key_dim]
        values: torch.Tensor,  # [num_slots, kv_heads, value_dim]
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        dtype = query.dtype
        query = query.to(keys.dtype)
        tokens, heads, _ = query.shape
        _, kv_heads, value_dim = values.shape
        group = heads // kv_heads
        private, shared = self._tensors(window, group, query.dtype)
        query = query.reshape(tokens, kv_heads, group, -1)
        out = query.new_empty((tokens, kv_heads, group, value_dim), dtype=torch.float32)
        lse = query.new_empty((tokens, kv_heads, group), dtype=torch.float32)
        for part in private:
            rows, queries = part.queries.shape
            q = query[part.queries].permute(0, 2, 1, 3, 4).reshape(rows, kv_heads, queries * group, -1)
            k = keys.index_select(0, part.slots).view(rows, -1, kv_heads, keys.shape[-1]).transpose(1, 2)
            v = values.index_select(0, part.slots).view(rows, -1, kv_heads, value_dim).transpose(1, 2)
            o, part_lse = _product(q, k, v, part.mask, scale, softcap)
            # Padding repeats a row's last query, so the same result is written more than once there.
            out[part.queries] = o.view(rows, kv_heads, queries, group, -1).permute(0, 2, 1, 3, 4).float()
            lse[part.queries] = part_lse.view(rows, kv_heads, queries, group).permute(0, 2, 1, 3).float()
        for common in shared:
            q = query[common.queries].permute(1, 0, 2, 3)  # [kv_heads, queries, group, key_dim]
            k, v = keys[common.slots].transpose(0, 1)[None], values[common.slots].transpose(0, 1)[None]
            o, part_lse = _product(q.reshape(1, kv_heads, -1, q.shape[-1]), k, v, common.mask, scale, softcap)
            _merge(
                out,
                lse,
                common.queries,
                o.view(kv_heads, -1, group, value_dim).transpose(0, 1).float(),
                part_lse.view(kv_heads, -1, group).transpose(0, 1).float(),
            )
        return out.view(tokens, heads, value_dim).to(dtype)

    def _tensors(
        self, window: int | None, group: int, dtype: torch.dtype
    ) -> tuple[list[_PrivateTensors], list[_SharedTensors]]:
        made = self._plans.get((window, group))
        if made is None:
            plan: Plan = self._planner.plan(window)
            private = [
                _PrivateTensors(
                    torch.from_numpy(part.queries).to(self._device),
                    torch.from_numpy(part.slots.reshape(-1)).to(self._device),
                    self._mask(part.visible, group, dtype),
                )
                for part in plan.private
            ]
            shared = [
                _SharedTensors(
                    self._index(part.queries),
                    self._index(part.slots),
                    None if part.visible is None else self._mask(part.visible[None], group, dtype),
                )
                for part in plan.shared
            ]
            made = self._plans[(window, group)] = (private, shared)
        return made

    def _index(self, indices: npt.NDArray[np.int64]) -> torch.Tensor | slice:
        """A slice where the indices are consecutive, which saves a copy."""
        first, last = int(indices[0]), int(indices[-1])
        if last - first + 1 == len(indices) and bool((np.diff(indices) == 1).all()):
            return slice(first, last + 1)
        return torch.from_numpy(indices).to(self._device)

    def _mask(self, visible: npt.NDArray[np.bool_] | None, group: int, dtype: torch.dtype) -> torch.Tensor | None:
        """[rows, 1, queries * group, keys], 0 or the lowest finite number: a row may have no visible key here."""
        if visible is None:
            return None
        hidden = torch.from_numpy(~visible).to(self._device).repeat_interleave(group, dim=1)
        return torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, torch.finfo(dtype).min)[
            :, None
        ]


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


def _product(
    q: torch.Tensor,  # [rows, kv_heads, queries, key_dim]
    k: torch.Tensor,  # [rows, kv_heads, keys, key_dim]
    v: torch.Tensor,  # [rows, kv_heads, keys, value_dim]
    mask: torch.Tensor | None,  # [rows, 1, queries, keys]
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output and its log-sum-exp, [rows, kv_heads, queries, value_dim] and [rows, kv_heads, queries]."""
    if _flash_cpu is not None and softcap is None and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        flash: tuple[torch.Tensor, torch.Tensor] = _flash_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        return flash
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores + mask.float()
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(scores.sub_(lse[..., None]).exp_(), v.float()), lse


def _merge(
    out: torch.Tensor,  # [tokens, kv_heads, group, value_dim] float32, changed in place
    lse: torch.Tensor,  # [tokens, kv_heads, group] float32, changed in place
    queries: torch.Tensor | slice,  # [queries]
    part_out: torch.Tensor,  # [queries, kv_heads, group, value_dim] float32
    part_lse: torch.Tensor,  # [queries, kv_heads, group] float32
) -> None:
    """Merge attention over further keys: weights exp(lse - total), total = log(exp(lse) + exp(part_lse))."""
    old = lse[queries]
    total = torch.logaddexp(old, part_lse)
    merged = out[queries] * (old - total).exp_()[..., None]
    merged += part_out * (part_lse - total).exp_()[..., None]
    out[queries] = merged
    lse[queries] = total
