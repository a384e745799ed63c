"""The check that a fused decoder computes what the model's own modules compute, made when a model is loaded."""

from __future__ import annotations

import numpy as np
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
NUM_SLOTS = 256
"""KV slots that the sample steps need."""

_BLOCK_SIZE = 4
_PREFIX, _TAILS, _OUTPUT = 20, (1, 7, 3, 9), 2


def sample_steps(vocab_size: int, context: int | None) -> list[StepBatch]:
    """Steps over random prompts that share a beginning: chunks of prompts, then decoded tokens."""
    rng = np.random.default_rng(0)
    longest = min(context or NUM_SLOTS, _PREFIX + max(_TAILS) + _OUTPUT)
    prefix = rng.integers(0, vocab_size, _PREFIX)
    tree = PrefixTree(BlockPool(NUM_SLOTS // _BLOCK_SIZE, _BLOCK_SIZE))
    scheduler = Scheduler(tree, max_tokens=_PREFIX + 4, max_logits=len(_TAILS), max_running=len(_TAILS))
    for tail in _TAILS:
        prompt = np.concatenate([prefix, rng.integers(0, vocab_size, tail)])[: max(1, longest - _OUTPUT)]
        scheduler.add(Sequence(prompt.astype(np.int32), max_tokens=_OUTPUT))
    batches = []
    while (step := scheduler.schedule()) is not None and step.chunks:
        batches.append(build_batch(step, _BLOCK_SIZE))
        scheduler.commit(step)
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                if sequence.num_generated + 1 < _OUTPUT:
                    scheduler.append(sequence, int(rng.integers(0, vocab_size)))
                else:
                    scheduler.remove(sequence)
    return batches


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
