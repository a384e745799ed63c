"""The answer to a request, put together from what the engine has of it."""

from __future__ import annotations

from collections.abc import Callable

from .request import Completion, FinishReason
from .stream import Job


def completion(
    job: Job, reason: FinishReason, error: str | None = None, *, decode: Callable[[tuple[int, ...]], str]
) -> Completion:
    """`decode` gives the text of tokens, or "" where there is no tokenizer."""
    request, output = job.request, job.output
    if output is not None:
        return Completion(
            id=request.id,
            token_ids=tuple(output.token_ids),
            text="" if error else output.text(decode),
            finish_reason=reason,
            error=error,
            log_probs=tuple(output.log_probs) if request.return_log_probs else None,
            num_prompt_tokens=job.num_prompt_tokens,
            incomplete=output.incomplete,
        )
    assert job.scores is not None
    if error:
        return Completion(request.id, finish_reason=reason, error=error, num_prompt_tokens=job.num_prompt_tokens)
    plan, scores = job.scores.plan, job.scores.scores()
    index = int(scores.argmax())  # the first of equals
    return Completion(
        id=request.id,
        token_ids=plan.labels[index],
        text=plan.texts[index] or decode(plan.labels[index]),
        finish_reason=reason,
        choice_index=index,
        log_probs=tuple(job.scores.log_probs.tolist()),
        num_prompt_tokens=job.num_prompt_tokens,
        scores=tuple(scores.tolist()),
    )
