"""Run one packed step through the model and return the logits that are asked for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from .attention import ShapeProbe, StepAttention
from .batch import StepBatch
from .errors import ModelError
from .kv_cache import KVCache, LayerShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelRunner:
    """A model, its KV pool, and the forward pass over one packed row [1, tokens]."""

    def __init__(self, model: PreTrainedModel, *, device: torch.device, dtype: torch.dtype, cascade: bool) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.cascade = cascade
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.layer_shapes = self._probe()
        self.cache: KVCache | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in all layers."""
        return sum(shape.num_elements() for shape in self.layer_shapes) * self.dtype.itemsize

    def allocate(self, num_slots: int) -> None:
        """Make the KV pool."""
        self.cache = KVCache(self.layer_shapes, num_slots, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Logits [logits, vocab] of the tokens in `batch.logit_index`; writes the KV of all tokens of the step."""
        assert self.cache is not None, "allocate() comes first"
        attention = StepAttention(batch, self.cache, cascade=self.cascade, device=self.device)
        keep = torch.from_numpy(batch.logit_index).to(self.device)
        return self._call(
            torch.from_numpy(batch.token_ids).to(self.device, torch.int64),
            torch.from_numpy(batch.positions).to(self.device, torch.int64),
            keep,
            attention,
        )

    def _call(
        self,
        token_ids: torch.Tensor,  # [tokens] int64
        positions: torch.Tensor,  # [tokens] int64
        keep: torch.Tensor,  # [logits] int64
        step: StepAttention | ShapeProbe,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self.model(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False, llmsql_step=step, **options
        )
        logits: torch.Tensor = output.logits[0]
        return logits if self._keeps_logits else logits[keep]

    @torch.inference_mode()
    def _probe(self) -> list[LayerShape]:
        """Run one token to see what each layer keeps, and that every layer attends through our function."""
        probe = ShapeProbe()
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        name = type(self.model).__name__
        try:
            self._call(one, one, one, probe)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{name} does not run in the engine: {error}") from error
        num_layers = self.model.config.get_text_config().num_hidden_layers
        if sorted(probe.shapes) != list(range(num_layers)):
            raise ModelError(
                f"only {len(probe.shapes)} of the {num_layers} layers of {name} are plain attention layers; recurrent,"
                " cross-attention and hybrid architectures are not supported"
            )
        return [probe.shapes[layer] for layer in range(num_layers)]
