"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

FinishReason = Literal["stop", "length", "choice", "error"]


@dataclass(frozen=True)
class Request:
    """One prompt and what to do with it.

    Example: `Request("row 7", [1, 15, 9], max_tokens=8)` or `Request(7, ids, choices=["Yes", "No"])`.
    """

    id: object
    """Comes back in the completion; any value, need not be unique."""
    token_ids: ArrayLike
    """The whole prompt, special tokens included: a list or one-dimensional integer array."""
    max_tokens: int = 64
    """Output tokens at most, the end-of-sequence token included; ignored when there are choices."""
    temperature: float = 0.0
    """0 is greedy; otherwise tokens are drawn from softmax(logits / temperature)."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else is in the batch; None draws a fresh seed."""
    choices: Sequence[str | Sequence[int]] | None = None
    """Exactly one of these answers, as text or token ids, scored without decoding."""
    grammar: object | None = None
    """Reserved for constrained output; a request that sets it fails with a clear error."""
    ignore_eos: bool = False
    """Run to `max_tokens` even when the model ends earlier (for benchmarks)."""


@dataclass(frozen=True)
class Completion:
    """The answer to one request."""

    id: object
    token_ids: tuple[int, ...] = ()
    """Output tokens, with the end-of-sequence token where the model produced one; for a choice, the label's tokens."""
    text: str = ""
    """The output as text without the end-of-sequence token; empty when the model folder has no tokenizer."""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    """Why the request failed; None when it succeeded."""
    choice_index: int | None = None
    log_probs: tuple[float, ...] | None = None
    """With choices: one log-probability per choice.

    Of the whole label, or of its first token when all labels differ in the first token.
    """
    num_prompt_tokens: int = 0
