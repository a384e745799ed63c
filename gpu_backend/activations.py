"""How much memory one step takes beside weights and KV: activations, the work of attention, logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .kv_cache import LayerShape
from .products import MAX_SCORES
from .tiles import MAX_KEYS
from .tiles import MAX_SCORES as MAX_PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StepMemory:
    """Sizes that the peak memory of a forward pass depends on; only one layer's intermediates live at a time.

    The figures are upper bounds for transformers' own modules as for the fused decoder, held against measured peaks in
    the tests. A prompt near a very long context needs more for masks than is counted here.
    """

    hidden: int
    intermediate: int  # of all experts that one token goes through
    num_experts: int  # that one token goes through; 1 without a mixture
    heads: int
    layer: LayerShape  # the largest
    vocab_size: int
    itemsize: int
    keeps_scores: bool  # the torch path without its flash kernel
    kernels: bool  # attention by Triton's kernels, which keep neither scores nor masks nor copies

    def activations(self, num_tokens: int, num_rows: int, num_keys: int) -> int:
        """Bytes for a step of `num_tokens`, in at most `num_rows` rows that see at most `num_keys` each."""
        query, value = self.heads * self.layer.key_dim, self.heads * self.layer.value_dim
        stream = self.hidden * (4 * self.itemsize + 8)  # residual, normed, their sum; the norm in float32
        experts = self.intermediate + self.num_experts * self.hidden if self.num_experts > 1 else self.intermediate
        feed_forward = (3 * experts + self.hidden) * self.itemsize
        attention = (4 * query + 3 * self.layer.num_elements()) * self.itemsize + 2 * value * 4
        return num_tokens * (stream + max(feed_forward, attention)) + self._attention_work(
            num_tokens, num_rows, num_keys
        )

    def logits(self, num_rows: int) -> int:
        """Bytes of the logits of so many rows, with a copy that is worked on."""
        return num_rows * self.vocab_size * (self.itemsize + 4)

    def _attention_work(self, num_tokens: int, num_rows: int, num_keys: int) -> int:
        """The torch path: copied keys and values, masks and scores of one batched product."""
        if self.kernels:
            return 0
        pairs = min(MAX_PAIRS, num_tokens * num_keys)
        copies = min(MAX_KEYS, num_rows * num_keys) * self.layer.num_elements() * self.itemsize
        masks = pairs * (1 + self.heads // self.layer.kv_heads * (self.itemsize + 1))
        if not self.keeps_scores:
            return copies + masks
        return copies + copies // self.itemsize * 4 + masks + min(MAX_SCORES, pairs * self.heads) * 8


def step_memory(
    model: PreTrainedModel,
    layers: Sequence[LayerShape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    kernels: bool,
) -> StepMemory:
    """The sizes of a model, from its configuration and what its layers keep."""
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    hidden = int(getattr(config, "hidden_size", None) or embedding.embedding_dim)
    sizes = getattr(config, "intermediate_size", None) or 4 * hidden
    dense = int(max(sizes) if isinstance(sizes, (list, tuple)) else sizes)  # a list where layers differ
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    of_expert = int(getattr(config, "moe_intermediate_size", None) or dense)
    shared = int(getattr(config, "shared_expert_intermediate_size", None) or 0)
    softcap = getattr(config, "attn_logit_softcapping", None)
    layer = max(layers, key=LayerShape.num_elements)
    return StepMemory(
        hidden=hidden,
        intermediate=max(dense, experts * of_expert + shared),
        num_experts=experts,
        heads=int(getattr(config, "num_attention_heads", None) or layer.kv_heads),
        layer=layer,
        vocab_size=embedding.num_embeddings,
        itemsize=dtype.itemsize,
        keeps_scores=device.type != "cpu" or softcap is not None or layer.key_dim != layer.value_dim,
        kernels=kernels,
    )
