"""Auxiliary losses that make a tiny model learn in minutes what it would otherwise learn in hours.

They show some heads where to look (a field's name, the field that decides, the token to copy) and ask the hidden states
at the end of a question or of a field for what was said there. Nothing of this is part of the saved model.
"""

from __future__ import annotations

import torch
from rows import PROBES, Batch, Place
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class Guidance(nn.Module):
    """Collects attention and hidden states of each forward pass and compares them with what the generator knows."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.probes = nn.ModuleDict(
            {f"is_{name}": nn.Linear(model.config.hidden_size, size) for name, size in PROBES.items()}
        )
        self._weights: list[Tensor] = []
        self._hidden: list[Tensor] = []
        self._middle = len(model.model.layers) // 2
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(lambda _module, _inputs, output: self._weights.append(output[1]))
            layer.register_forward_hook(lambda _module, _inputs, output: self._hidden.append(output))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, for the forward pass just made."""
        early, late = self._weights[self._middle - 1], self._weights[self._middle]
        losses = {
            "before": _attention_loss(self._weights[0][:, 0].diagonal(-1, 1, 2)),
            "names": _attention_loss(_looks(early[:, 0], batch.names)),
            "sources": _attention_loss(_looks(late[:, 0], batch.sources, back=1)),
            "evidence": _attention_loss(_looks(late[:, 1], batch.evidence)),
        }
        for name, facts in batch.facts.items():
            if facts:
                rows, places, classes = torch.tensor(facts).T
                # a sentence is understood by the second layer, a field by the layer before the middle
                hidden = self._hidden[1 if name in ("opinion", "aspect") else self._middle - 1]
                logits = self.probes[f"is_{name}"](
                    nn.functional.rms_norm(hidden[rows, places], hidden.shape[-1:])
                ).float()
                if name == "topics":
                    bits = (classes[:, None] >> torch.arange(PROBES[name])) & 1
                    losses[name] = nn.functional.binary_cross_entropy_with_logits(logits, bits.float())
                else:
                    losses[name] = nn.functional.cross_entropy(logits, classes)
        self._weights.clear()
        self._hidden.clear()
        return losses


def _looks(weights: Tensor, places: list[Place], back: int = 0) -> Tensor:
    """The attention of each place's query for its key; answers are foreseen one token `back`."""
    if not places:
        return weights.new_zeros(0)
    rows, queries, keys = torch.tensor(places).T
    return weights[rows, queries - back, keys]


def _attention_loss(weights: Tensor) -> Tensor:
    return -weights.float().clamp(min=1e-9).log().mean() if weights.numel() else weights.sum()
