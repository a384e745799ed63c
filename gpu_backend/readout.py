"""What a step's logits say: the next token of every decoding row, and the scores of choice labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .batch import StepBatch
from .choices import PROMPT
from .sampling import draw, greedy, label_log_probs
from .sequence import Sequence
from .step import Chunk
from .stream import Job, job_of

NOT_A_NUMBER = "the model's logits are NaN for this prompt"
"""The error of a request whose logits cannot be used."""


def next_tokens(batch: StepBatch, logits: torch.Tensor) -> list[tuple[Sequence, int | None]]:
    """The next token of every sequence that generates text, None where its logits [logits, vocab] hold a NaN."""
    rows = [(sequence, row) for chunk, row in batch.readers for sequence in chunk.sequences if not sequence.scores_only]
    if not rows:
        return []
    token_ids, usable = (column.tolist() for column in greedy(logits))
    tokens: dict[Sequence, int | None] = {seq: token_ids[row] if usable[row] else None for seq, row in rows}
    drawn = [(seq, row) for seq, row in rows if job_of(seq).request.temperature > 0 and usable[row]]
    if drawn:
        jobs = [job_of(sequence) for sequence, _ in drawn]
        ids = draw(
            logits[torch.tensor([row for _, row in drawn], device=logits.device)],
            [job.request.temperature for job in jobs],
            [job.seed for job in jobs],
            [len(job.output) for job in jobs],
        )
        tokens.update(zip((sequence for sequence, _ in drawn), ids.tolist()))
    return list(tokens.items())


def score_labels(batch: StepBatch, logits: torch.Tensor) -> None:
    """Add the log-probabilities that these logits [logits, vocab] give to the scores of the choice requests."""
    terms = [
        term
        for chunk, first_row in batch.readers
        for sequence in chunk.sequences
        if sequence.scores_only
        for term in _label_terms(sequence, chunk, first_row)
    ]
    if terms:
        log_probs = label_log_probs(logits, [row for _, _, row, _ in terms], [token for *_, token in terms])
        for (job, label, _, _), log_prob in zip(terms, log_probs.tolist()):
            job.scores[label] += log_prob


def _label_terms(sequence: Sequence, chunk: Chunk, first_row: int) -> Iterator[tuple[Job, int, int, int]]:
    """(job, label, logit row, token) of every log-probability that the chunk's logits give."""
    job = job_of(sequence)
    assert job.choices is not None
    terms = job.choices.terms
    if chunk.node is sequence.leaf:
        for label, token in terms.get(PROMPT, ()):
            yield job, label, first_row, token
        return
    index = sequence.label_nodes.index(chunk.node)
    for offset in range(chunk.start, chunk.end):
        for label, token in terms.get((index, offset), ()):
            yield job, label, first_row + offset - chunk.start, token
