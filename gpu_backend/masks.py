"""Which tokens may come next in constrained rows: found beside the forward pass, then put on its logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .batch import StepBatch
from .sequence import Sequence
from .stream import job_of

Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StepMasks:
    """The masks of one step, perhaps still in the making; bit `t % 32` of word `t // 32` allows token `t`."""

    rows: dict[Sequence, int]
    words: Words  # [rows, words], valid after `wait`
    pending: Future[None] | None

    def wait(self) -> StepMasks:
        """Let the masks become ready; no matcher of the step may be touched before."""
        if self.pending is not None:
            self.pending.result()
        return self


NO_MASKS = StepMasks({}, np.empty((0, 0), np.int32), None)
"""Of a step without constrained rows."""


class MaskMaker:
    """Computes masks with llguidance's threads: while the model runs (`overlap`), or before it."""

    def __init__(self, *, overlap: bool = True) -> None:
        self.overlap = overlap
        self._thread: ThreadPoolExecutor | None = None
        self._executor: Any = None  # llguidance.LLExecutor

    def start(self, batch: StepBatch) -> StepMasks:
        """Begin with the masks of all constrained rows whose next token the step's logits give."""
        outputs = {
            sequence: output
            for chunk, _ in batch.readers
            for sequence in chunk.sequences
            if (output := job_of(sequence).output) is not None and output.matcher is not None
        }
        if not outputs:
            return NO_MASKS
        matchers = [output.matcher for output in outputs.values() if output.matcher is not None]
        words = np.zeros((len(matchers), matchers[0].num_words), np.int32)
        work = []
        for row, output in enumerate(outputs.values()):
            if output.expected is None:
                work.append((matchers[row].native, row))
            else:
                words.view(np.uint32)[row, output.expected // 32] = 1 << output.expected % 32
        masks = StepMasks({sequence: row for row, sequence in enumerate(outputs)}, words, None)
        if not work:
            return masks
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmsql-masks")
        if self.overlap:
            assert self._thread is not None
            return replace(masks, pending=self._thread.submit(self._fill, work, words))
        self._fill(work, words)
        return masks

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._thread is not None:
            self._thread.shutdown()
        self._thread = self._executor = None

    def _fill(self, work: list[tuple[Any, int]], words: Words) -> None:
        self._executor.unsafe_compute_mask_ptr(work, words.ctypes.data, words.shape[1] * 4, len(words))


@torch.inference_mode()
def apply_masks(logits: torch.Tensor, masks: StepMasks, sequences: Rows[Sequence]) -> None:
    """Set the logits [sequences, vocab] of all tokens that are not allowed to -inf, in place."""
    words = masks.words[[masks.rows[sequence] for sequence in sequences]]
    on_cpu = logits.device.type == "cpu"
    hidden = _hidden_on_cpu(words, logits.shape[1]) if on_cpu else _hidden(words, logits.shape[1], logits.device)
    torch.where(hidden, logits.new_tensor(-torch.inf), logits, out=logits)


def _hidden_on_cpu(words: Words, vocab_size: int) -> torch.Tensor:
    """[rows, vocab] bool, True where the bit is 0."""
    bits = np.unpackbits(~words.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))


def _hidden(words: Words, vocab_size: int, device: torch.device) -> torch.Tensor:
    """The same on any device: only the packed words are sent there."""
    packed = torch.from_numpy(words).to(device)
    bits = packed[:, :, None] >> torch.arange(32, dtype=torch.int32, device=device)
    return (bits & 1).view(len(words), -1)[:, :vocab_size] == 0
