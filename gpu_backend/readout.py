"""What a step's logits say: the next token of every decoding row, and the scores of choice labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .batch import StepBatch
from .choices import PROMPT
from .masks import StepMasks, apply_masks
from .output import CANNOT_GO_ON
from .sampling import Draw, draw, greedy, label_log_probs
from .sequence import Sequence
from .step import Chunk
from .stream import Job, job_of

NOT_A_NUMBER = "the model's logits are NaN for this prompt"
"""The error of a request whose logits cannot be used."""


NextToken = tuple[Sequence, int, float, str | None]
"""A sequence, its next token, the token's log-probability (0 unless the request asks for it), or why it has none.

A plain tuple, because there is one for each row in every step.
"""


def next_tokens(batch: StepBatch, logits: torch.Tensor, masks: StepMasks, *, kernels: bool = False) -> list[NextToken]:
    """The next token of every sequence that generates text, from logits [logits, vocab].

    `kernels` is that of `label_log_probs`. The logits of constrained rows are overwritten, so the labels of choices
    must have been read.
    """
    rows = [(sequence, row) for chunk, row in batch.readers for sequence in chunk.sequences if not sequence.scores_only]
    masks.wait()
    free = [(sequence, row) for sequence, row in rows if sequence not in masks.rows] if masks.rows else rows
    tokens = _choose(*_rows(logits, free), kernels)
    if masks.rows:
        bound = [(sequence, row) for sequence, row in rows if sequence in masks.rows]
        sequences, own = _rows(logits, bound)
        apply_masks(own, masks, sequences)
        tokens += [_checked(token) for token in _choose(sequences, own, kernels)]
    return tokens


def score_labels(batch: StepBatch, logits: torch.Tensor, *, kernels: bool = False) -> None:
    """Add the log-probabilities that these logits [logits, vocab] give to the scores of the choice requests.

    `kernels` is that of `label_log_probs`.
    """
    terms = [
        term
        for chunk, first_row in batch.readers
        for sequence in chunk.sequences
        if sequence.scores_only
        for term in _label_terms(sequence, chunk, first_row)
    ]
    if terms:
        rows, token_ids = [row for *_, row, _ in terms], [token for *_, token in terms]
        log_probs = label_log_probs(logits, rows, token_ids, kernels=kernels)
        for (job, place, label, _, _), log_prob in zip(terms, log_probs.tolist()):
            assert job.scores is not None
            job.scores.add(place, label, log_prob)


def _rows(logits: torch.Tensor, readers: list[tuple[Sequence, int]]) -> tuple[list[Sequence], torch.Tensor]:
    """The sequences, and one row of logits for each; a copy, unless they are all the rows in order."""
    index = [row for _, row in readers]
    if index != list(range(len(logits))):
        logits = logits[torch.tensor(index, dtype=torch.int64, device=logits.device)]
    return [sequence for sequence, _ in readers], logits


def _choose(sequences: list[Sequence], logits: torch.Tensor, kernels: bool) -> list[NextToken]:
    """The next token of each sequence from its row of [sequences, vocab]."""
    if not sequences:
        return []
    jobs = [job_of(sequence) for sequence in sequences]
    token_ids, usable = greedy(logits)
    drawn = [row for row, job in enumerate(jobs) if job.request.temperature > 0 and usable[row]]
    if drawn:
        everything = len(drawn) == len(jobs)
        chosen = logits if everything else logits[torch.tensor(drawn, device=logits.device)]
        token_ids[drawn] = draw(chosen, [_draw_of(jobs[row]) for row in drawn])
    log_probs = [0.0] * len(jobs)
    asked = [row for row, job in enumerate(jobs) if job.request.return_log_probs and usable[row]]
    if asked:
        given = label_log_probs(logits, asked, token_ids[asked].tolist(), kernels=kernels)
        for row, log_prob in zip(asked, given.tolist()):
            log_probs[row] = log_prob
    errors = [None if good else NOT_A_NUMBER for good in usable.tolist()]
    return list(zip(sequences, token_ids.tolist(), log_probs, errors))


def _checked(token: NextToken) -> NextToken:
    """A constrained row's token, unless its grammar came to an end that is none."""
    sequence, token_id, log_prob, error = token
    output = job_of(sequence).output
    assert output is not None
    assert output.matcher is not None
    problem = output.matcher.problem
    if problem is not None:
        return sequence, token_id, log_prob, f"{CANNOT_GO_ON}: {problem}"
    return token if error is None else (sequence, token_id, log_prob, f"{NOT_A_NUMBER}, or exclude all that may follow")


def _draw_of(job: Job) -> Draw:
    request, output = job.request, job.output
    assert output is not None
    return Draw(request.temperature, request.top_k, request.top_p, request.min_p, job.seed, len(output.token_ids))


def _label_terms(
    sequence: Sequence, chunk: Chunk, first_row: int
) -> Iterator[tuple[Job, tuple[int, int], int, int, int]]:
    """(job, place, label, logit row, token) of every log-probability that the chunk's logits give."""
    job = job_of(sequence)
    assert job.scores is not None
    terms = job.scores.plan.terms
    if chunk.node is sequence.leaf:
        for label, token in terms.get(PROMPT, ()):
            yield job, PROMPT, label, first_row, token
        return
    index = sequence.label_nodes.index(chunk.node)
    for offset in range(chunk.start, chunk.end):
        for label, token in terms.get((index, offset), ()):
            yield job, (index, offset), label, first_row + offset - chunk.start, token
