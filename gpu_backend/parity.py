"""The checks that the engine computes what the model's own modules compute, made when a model is loaded."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .batch import StepBatch, build_batch
from .blocks import BlockPool
from .scheduler import Scheduler
from .sequence import Sequence
from .tree import PrefixTree

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The difference of logits that passes; see `difference`.

Models of 24 to 36 layers with random weights differ by 3e-6 in float32 and 2e-2 in bfloat16, where both ways are as far
from float32; a wrong formula by far more.
"""
PACKED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""The same between rows packed together and each by itself; see `is_packed_right`."""
NUM_SLOTS = 256
"""KV slots that the sample steps need."""

_BLOCK_SIZE = 4
_PREFIX, _TAILS, _OUTPUT = 20, (1, 7, 3, 9), 2


class SampleStep(NamedTuple):
    """A step, and what its logits follow."""

    batch: StepBatch
    rows: list[npt.NDArray[np.int32]]
    """For each row of logits all tokens from the first on."""


def sample_steps(vocab_size: int, context: int | None) -> list[SampleStep]:
    """Steps over random prompts that share a beginning: chunks of prompts, then decoded tokens."""
    rng = np.random.default_rng(0)
    longest = min(context or NUM_SLOTS, _PREFIX + max(_TAILS) + _OUTPUT)
    prefix = rng.integers(0, vocab_size, _PREFIX)
    tree = PrefixTree(BlockPool(NUM_SLOTS // _BLOCK_SIZE, _BLOCK_SIZE))
    scheduler = Scheduler(tree, max_tokens=_PREFIX + 4, max_logits=len(_TAILS), max_running=len(_TAILS))
    texts: dict[Sequence, npt.NDArray[np.int32]] = {}
    for tail in _TAILS:
        prompt = np.concatenate([prefix, rng.integers(0, vocab_size, tail)])[: max(1, longest - _OUTPUT)]
        sequence = Sequence(prompt.astype(np.int32), max_tokens=_OUTPUT)
        texts[sequence] = sequence.token_ids
        scheduler.add(sequence)
    steps = []
    while (step := scheduler.schedule()) is not None and step.chunks:
        batch = build_batch(step, _BLOCK_SIZE)
        steps.append(SampleStep(batch, [texts[chunk.sequences[0]] for chunk, _ in batch.readers]))
        scheduler.commit(step)
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                if sequence.num_generated + 1 < _OUTPUT:
                    token_id = int(rng.integers(0, vocab_size))
                    texts[sequence] = np.append(texts[sequence], np.int32(token_id))
                    scheduler.append(sequence, token_id)
                else:
                    scheduler.remove(sequence)
    return steps


def difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference over that of the reference; infinite unless both are finite where one is."""
    reference, other = reference.double(), other.double()
    finite = reference.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return float("inf")
    distance, size = (float(values[finite].square().sum()) for values in (reference - other, reference))
    if distance == 0.0:
        return 0.0
    return (distance / size) ** 0.5 if size > 0.0 else float("inf")


def is_packed_right(packed: torch.Tensor, alone: list[torch.Tensor]) -> bool:
    """Whether rows of logits [rows, vocab] are those that the model gives for each row alone, by attention of its own.

    Given those of two ways to attend, four times their distance passes as well: in a mixture of experts a difference in
    the last bit may send a token elsewhere. The median of rows counts. In bfloat16 right models of four layers are at
    1.5 times that distance or below, wrong ones at 8 or above.
    """

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return statistics.median(difference(*rows) for rows in zip(one.unbind(), other.unbind()))

    passes = max(PACKED_TOLERANCE.get(packed.dtype, 0.0), 4 * distance(alone[0], alone[-1]))
    return distance(alone[-1], packed) <= passes
