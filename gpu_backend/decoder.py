"""The fused decoder: one packed forward pass for the families that are Llama with variations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .decoder_layer import Attention, DecoderLayer, Norm, ReadRows, StepTensors
from .embedding import Embedding
from .linear import Linear
from .operators import Operators
from .rotary import RotaryTable
from .row_sizes import RowSizes


@dataclass(frozen=True)
class FusedDecoder:
    """A decoder-only model as embeddings, layers, a norm and a head, without modules.

    Beside the transformers modules whose weights it uses, it has merged projections, residual sums inside the norms,
    rotary embedding and KV write as one operation, no batch dimension, and a last layer that goes on with those tokens
    only whose logits are read.
    """

    embedding: Embedding
    embedding_scale: float | None
    layers: Sequence[DecoderLayer]
    rotary: Sequence[RotaryTable]
    rotary_of: Sequence[int]
    """Which of `rotary` each layer turns by."""
    norm: Norm
    head: Linear
    logit_softcap: float | None
    operators: Operators
    row_sizes: RowSizes
    """That of the products."""
    together: Callable[[torch.Tensor, Sequence[StepTensors]], tuple[torch.Tensor, torch.Tensor]] | None = None
    """All layers but the last in one call, where kernels have one; see `NativeLayers`."""

    def __call__(
        self,
        token_ids: torch.Tensor,  # [tokens] int64
        positions: torch.Tensor,  # [tokens] int64
        attention: Attention,
        *,
        num_positions: int,
        rows: ReadRows | None,
    ) -> torch.Tensor:
        """Logits [logits, vocab] of `rows`, or of all tokens if None; the KV of all tokens is written.

        `num_positions` is more than any position.
        """
        self.row_sizes.count(len(token_ids))
        if rows is not None:
            self.row_sizes.count(len(rows.index))
        hidden = self.embedding(token_ids)
        if self.embedding_scale is not None:
            hidden *= self.embedding_scale
        steps = [self._step(table, num_positions, positions, hidden.dtype, attention) for table in self.rotary]
        residual: torch.Tensor | None = None
        early = rows if rows is not None and (rows.attention is not None or len(rows.index) == 0) else None
        last = len(self.layers) - 1
        begin = 0
        if self.together is not None:
            hidden, residual = self.together(hidden, steps)
            begin = last
        for number, layer in enumerate(self.layers[begin:], begin):
            step = steps[self.rotary_of[number]]
            hidden, residual = layer(hidden, residual, step, self.operators, early if number == last else None)
        if rows is not None and early is None:
            assert residual is not None, "a model has layers"
            hidden, residual = hidden.index_select(0, rows.index), residual.index_select(0, rows.index)
        normed, _ = self.operators.rms_norm(hidden, self.norm.weight, self.norm.eps, residual, offset=self.norm.offset)
        logits = self.head(normed)
        if self.logit_softcap is not None:
            logits = logits.div_(self.logit_softcap).tanh_().mul_(self.logit_softcap)
        return logits

    def restore(self) -> None:
        """Give the transformers modules their weights back."""
        for layer in self.layers:
            for linear in (layer.query, layer.key_value, layer.output, layer.gate_up, layer.down):
                if linear is not None:
                    linear.restore()
        self.head.restore()
        self.embedding.restore()

    def _step(
        self,
        table: RotaryTable,
        num_positions: int,
        positions: torch.Tensor,
        dtype: torch.dtype,
        attention: Attention,
    ) -> StepTensors:
        cos, sin = self.operators.angles(*table(num_positions), positions, dtype)
        return StepTensors(cos, sin, positions, attention)
