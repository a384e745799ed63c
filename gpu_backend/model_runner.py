"""Run one packed step through the model and return the logits that are asked for."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from .activations import StepMemory, step_memory
from .attention import attending, attention_of, no_interface
from .attention_kernels import attention_kernels
from .batch import StepBatch
from .context import read_context
from .decoder import FusedDecoder
from .decoder_families import NotFusedError, check_family, fuse
from .decoder_layer import ReadRows
from .errors import ModelError
from .file_pages import FilePages
from .kernel_choice import can_run
from .kv_cache import KVCache, slots_first
from .logit_rows import logit_rows
from .memory import free_memory
from .operators import Operators, TorchOperators
from .parity import NUM_SLOTS, TOLERANCE, SampleStep, difference, is_packed_right, sample_steps
from .probe import PROBE_NAME, ShapeProbe
from .step_attention import StepAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .kernel_attention import KernelAttention

_MIN_SKIPPED_TOKENS = {"cuda": 1024}
"""From how many tokens on that nobody reads the last layer leaves them out; elsewhere 64. Planning costs time too."""

logger = logging.getLogger(__name__)


class ModelRunner:
    """A model, its KV pool, and the forward pass over one packed row of tokens.

    Two paths compute the same: transformers' modules, which run every decoder-only family, and the fused decoder where
    there is one (`decoder`), after it was compared with them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        cascade: bool,
        kernels: str = "torch",
        split_keys: bool = True,
        fused: bool = True,
        shared: bool = False,
    ) -> None:
        """See `Engine` for the switches; `shared` says that somebody else holds the model's weights as well."""
        self.model = model
        self.device = device
        self.dtype = dtype
        self.cascade = cascade
        self.kernels = kernels
        self.split_keys = split_keys
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.weight_bytes = sum(weight.nbytes for weight in model.parameters())  # the decoder may empty them
        self.decoder: FusedDecoder | None = None
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._min_skipped_tokens = _MIN_SKIPPED_TOKENS.get(device.type, 64)
        self._probed = self._probe()
        self.layer_shapes = [shape for _, shape in sorted(self._probed.shapes.items())]
        if not can_run(self.kernels, self.layer_shapes, dtype):
            logger.info("%s runs by torch's operators: the kernels take no such heads or type", type(model).__name__)
            self.kernels = "torch"
        self.cache: KVCache | None = None
        self._last_attention: StepAttention | KernelAttention | None = None
        try:
            check_family(self.model)
        except NotFusedError as reason:
            logger.info("%s runs by transformers' modules: %s", type(model).__name__, reason)
            self._check_packed()
        else:
            if fused:
                self._fuse(shared)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in all layers."""
        return sum(shape.num_elements() for shape in self.layer_shapes) * self.dtype.itemsize

    def step_memory(self) -> StepMemory:
        """What the memory of one step depends on."""
        return step_memory(
            self.model, self.layer_shapes, dtype=self.dtype, device=self.device, kernels=self.kernels != "torch"
        )

    def allocate(self, num_slots: int) -> None:
        """Make the KV pool."""
        self.cache = self._new_cache(num_slots, self.kernels)
        self._last_attention = None  # of the check of the decoder: its steps are numbered by themselves

    def _new_cache(self, num_slots: int, kernels: str) -> KVCache:
        """A pool for the attention of these kernels."""
        pool_shapes = slots_first if kernels == "torch" else attention_kernels(kernels).pool_shapes
        return KVCache(self.layer_shapes, num_slots, dtype=self.dtype, device=self.device, pool_shapes=pool_shapes)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Logits [logits, vocab] of the tokens in `batch.logit_index`; writes the KV of all tokens of the step."""
        assert self.cache is not None, "allocate() comes first"
        if self.decoder is None:
            return self._run_modules(batch, self.cache)
        return self._run_decoder(self.decoder, batch, self.cache, self._min_skipped_tokens)

    def _run_modules(self, batch: StepBatch, cache: KVCache) -> torch.Tensor:
        return self._call(*self._inputs(batch), self._index(batch), self._attention_of_step(batch, cache))

    def _run_decoder(
        self, decoder: FusedDecoder, batch: StepBatch, cache: KVCache, min_skipped_tokens: int
    ) -> torch.Tensor:
        attention = self._attention_of_step(batch, cache)
        num_logits, num_tokens = len(batch.logit_index), len(batch.token_ids)
        rows = None
        if num_logits < num_tokens:
            alone = num_logits > 0 and num_tokens - num_logits >= min_skipped_tokens
            rows = ReadRows(self._index(batch), self._attention(logit_rows(batch), cache) if alone else None)
        num_positions = int(batch.positions.max()) + 1
        return decoder(*self._inputs(batch), attention, num_positions=num_positions, rows=rows)

    def _index(self, batch: StepBatch) -> torch.Tensor:
        return torch.from_numpy(batch.logit_index).to(self.device)

    def _inputs(self, batch: StepBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and positions [tokens] int64."""
        return (
            torch.from_numpy(batch.token_ids).to(self.device, torch.int64),
            torch.from_numpy(batch.positions).to(self.device, torch.int64),
        )

    def _attention_of_step(self, batch: StepBatch, cache: KVCache) -> StepAttention | KernelAttention:
        attention = self._last_attention = self._attention(batch, cache)
        return attention

    def _attention(self, batch: StepBatch, cache: KVCache) -> StepAttention | KernelAttention:
        last = self._last_attention
        if self.kernels == "torch":
            previous = last if isinstance(last, StepAttention) else None
            return StepAttention(batch, cache, cascade=self.cascade, device=self.device, previous=previous)
        from .kernel_attention import KernelAttention

        return KernelAttention(
            batch,
            cache,
            attention_kernels(self.kernels),
            cascade=self.cascade,
            split_keys=self.split_keys,
            device=self.device,
            previous=last if isinstance(last, KernelAttention) else None,
        )

    def _call(
        self,
        token_ids: torch.Tensor,  # [tokens] int64
        positions: torch.Tensor,  # [tokens] int64
        keep: torch.Tensor,  # [logits] int64
        step: StepAttention | KernelAttention,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        with attending(step):
            output = self.model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **options)
        logits: torch.Tensor = output.logits[0]
        return logits if self._keeps_logits else logits[keep]

    @torch.inference_mode()
    def _probe(self) -> ShapeProbe:
        """Run one token to see what each layer keeps, and that every layer attends through our function."""
        probe = ShapeProbe(read_context(self.model).length)
        one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        name = type(self.model).__name__
        try:
            with attention_of(self.model, PROBE_NAME), probe.looking():
                self.model(input_ids=one, position_ids=one, use_cache=False)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{name} does not run in the engine: {error}") from error
        num_layers = self.model.config.get_text_config().num_hidden_layers
        if not probe.shapes:
            raise ModelError(no_interface(name))
        if sorted(probe.shapes) != list(range(num_layers)):
            raise ModelError(
                f"only {len(probe.shapes)} of the {num_layers} layers of {name} are plain attention layers; recurrent,"
                " cross-attention and hybrid architectures are not supported"
            )
        return probe

    @torch.inference_mode()
    def _check_packed(self) -> None:
        """Raise ModelError unless rows packed together get the logits that the model gives for each by itself."""
        name, steps = type(self.model).__name__, self._sample_steps()
        rows = [row for step in steps for row in step.rows]
        try:
            packed = torch.cat(self._sample_logits(steps, None))
            alone = [self._alone(rows, "eager")]
            if getattr(self.model, "_supports_sdpa", False):
                alone.append(self._alone(rows, "sdpa"))
        except Exception as error:
            raise ModelError(f"{name} does not run in the engine: {error}") from error
        if not is_packed_right(packed, alone):
            raise ModelError(
                f"{name} cannot be run: rows that are packed together get other logits than each by itself; some models"
                " number positions, or mix tokens outside of attention, in a way of their own"
            )

    def _alone(self, rows: list[npt.NDArray[np.int32]], attention: str) -> torch.Tensor:
        """The last logits of each row [rows, vocab], by transformers' attention of this name."""
        logits = []
        with attention_of(self.model, attention):
            for row in rows:
                ids = torch.from_numpy(row).to(self.device, torch.int64)[None]
                output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                logits.append(output.logits[0, -1:])
        return torch.cat(logits)

    @torch.inference_mode()
    def _fuse(self, shared: bool) -> None:
        """Make the fused decoder, and keep it if its logits are those of the model's modules."""
        name = type(self.model).__name__
        steps = self._sample_steps()
        expected = self._sample_logits(steps, None)
        operators = self._operators()
        copy = not shared or self.weight_bytes <= free_memory(self.device) // 4
        pages = None if shared else FilePages(self.model.parameters())
        decoder = fuse(
            self.model,
            self._probed.attention,
            self.layer_shapes,
            operators=operators,
            copy=copy,
            kernels=self.kernels,
            pages=pages,
        )
        found = self._sample_logits(steps, decoder)
        worst = max(difference(one, other) for one, other in zip(expected, found))
        tolerance = TOLERANCE.get(self.dtype, 0.0)
        if worst <= tolerance:
            self.decoder = decoder
            logger.info("%s runs by the fused decoder; its logits differ by %.1e", name, worst)
            return
        decoder.restore()
        logger.warning(
            "%s runs by transformers' modules: logits of the fused decoder differ by %.1e (root mean square,"
            " relative), which is more than %.0e; please report this",
            name,
            worst,
            tolerance,
        )

    def _sample_steps(self) -> list[SampleStep]:
        return sample_steps(self.vocab_size, read_context(self.model).length)

    def _sample_logits(self, steps: list[SampleStep], decoder: FusedDecoder | None) -> list[torch.Tensor]:
        batches = [step.batch for step in steps]
        cache = self._new_cache(NUM_SLOTS, "torch" if decoder is None else self.kernels)
        if decoder is None:  # attention by torch, so that kernels are compared as well
            options: dict[str, Any] = {"cascade": self.cascade, "device": self.device}
            attentions = [StepAttention(batch, cache, **options) for batch in batches]
            return [self._call(*self._inputs(b), self._index(b), step) for b, step in zip(batches, attentions)]
        return [self._run_decoder(decoder, batch, cache, min_skipped_tokens=1) for batch in batches]

    def _operators(self) -> Operators:
        if self.kernels == "torch":
            return TorchOperators()
        if self.kernels == "native":
            from .native_operators import NativeOperators

            return NativeOperators()
        from .triton_operators import TritonOperators  # loads triton

        return TritonOperators()
