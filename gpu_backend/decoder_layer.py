"""One layer of the fused decoder: what it holds, and its few lines of arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from .gated_linear import GatedLinear
from .kv_cache import KVCache, LayerAttention
from .linear import Linear
from .operators import Operators


class Attention(Protocol):
    """A step's attention, as `StepAttention` and `KernelAttention` are."""

    cache: KVCache
    slots: torch.Tensor  # [tokens]

    def attend(
        self, layer: int, query: torch.Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """[tokens, heads, value_dim] of the queries [tokens, heads, head_dim]."""
        ...


@dataclass(frozen=True)
class Norm:
    """Weights of a root mean square norm; with `offset` they are added to one, as Gemma has it."""

    weight: torch.Tensor  # [size]
    eps: float
    offset: bool = False


@dataclass(frozen=True)
class StepTensors:
    """What all layers of one kind of rotary embedding read in a step."""

    cos: torch.Tensor  # as `Operators.rotary_and_write` takes them
    sin: torch.Tensor
    positions: torch.Tensor  # [tokens] int64
    attention: Attention


@dataclass(frozen=True)
class ReadRows:
    """The tokens whose logits are read: behind the last layer's keys and values, the others are of no use."""

    index: torch.Tensor  # [logits] int64
    attention: Attention | None  # of those tokens alone; None where the last layer runs all tokens, or none is read


@dataclass(frozen=True)
class DecoderLayer:
    """Attention and MLP, each between a norm and the residual sum.

    Norms behind attention and MLP are Gemma's. In the last layer queries are projected apart from keys and values, so
    that only the tokens in `ReadRows` need them.
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    options: LayerAttention
    input_norm: Norm
    query_norm: Norm | None
    key_norm: Norm | None
    query: Linear | None  # None: `key_value` gives queries, keys and values
    key_value: Linear
    output: Linear
    attention_norm: Norm | None
    mlp_input_norm: Norm
    gate_up: GatedLinear
    down: Linear
    mlp_norm: Norm | None

    def __call__(
        self,
        hidden: torch.Tensor,  # [tokens, hidden], what the last layer adds to the residual
        residual: torch.Tensor | None,  # [tokens, hidden], changed in place; None before the first layer
        step: StepTensors,
        operators: Operators,
        rows: ReadRows | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What this layer adds, and the residual it adds it to; both of `rows` only, where these are given.

        `rows` have an attention of their own, or are none.
        """
        hidden, residual = _norm(operators, self.input_norm, hidden, residual)
        query = self._project(hidden, step, operators, rows)
        attention = step.attention
        if rows is not None:
            query, residual = query.index_select(0, rows.index), residual.index_select(0, rows.index)
            if rows.attention is None:
                return residual, residual
            attention = rows.attention
        options = self.options
        attended = attention.attend(
            self.index, query, scale=options.scale, window=options.window, softcap=options.softcap
        )
        hidden = self.output(attended.flatten(1))
        if self.attention_norm is not None:
            hidden = _norm(operators, self.attention_norm, hidden)[0]
        hidden, residual = _norm(operators, self.mlp_input_norm, hidden, residual)
        hidden = self.down(self.gate_up(hidden))
        if self.mlp_norm is not None:
            hidden = _norm(operators, self.mlp_norm, hidden)[0]
        return hidden, residual

    def _project(
        self, hidden: torch.Tensor, step: StepTensors, operators: Operators, rows: ReadRows | None
    ) -> torch.Tensor:
        """Store keys and values of all tokens; the rotated queries [tokens, heads, head_dim], valid in `rows`."""
        tokens = len(hidden)
        projected = self.key_value(hidden).view(tokens, -1, self.head_dim)
        if self.query is None:
            query, key, value = torch.split(projected, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        else:
            key, value = torch.split(projected, [self.kv_heads, self.kv_heads], dim=1)
            if rows is None:
                query = self.query(hidden).view(tokens, self.heads, self.head_dim)
            else:
                query = hidden.new_zeros(tokens, self.heads, self.head_dim)
                query[rows.index] = self.query(hidden[rows.index]).view(-1, self.heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query = _norm(operators, self.query_norm, query)[0]
            key = _norm(operators, self.key_norm, key)[0]
        attention = step.attention
        keys, values = attention.cache.keys[self.index], attention.cache.values[self.index]
        return operators.rotary_and_write(
            query,
            key,
            value,
            step.cos,
            step.sin,
            step.positions,
            keys,
            values,
            attention.slots,
        )


def _norm(
    operators: Operators, norm: Norm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return operators.rms_norm(x, norm.weight, norm.eps, residual, offset=norm.offset)
