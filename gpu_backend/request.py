"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from .grammar import Grammar

FinishReason = Literal["stop", "length", "choice", "error"]
ChoiceScoring = Literal["auto", "total", "mean"]


@dataclass(frozen=True)
class Request:
    """One prompt and what to do with it: free text, constrained text (`grammar`), or one of some `choices`.

    Example: `Request("row 7", [1, 15, 9], max_tokens=8)` or `Request(7, ids, choices=["Yes", "No"])`.
    """

    id: object
    """Comes back in the completion; any value, need not be unique."""
    token_ids: ArrayLike
    """The whole prompt, special tokens included: a list or one-dimensional integer array."""
    max_tokens: int = 64
    """Output tokens at most, the end-of-sequence token included; ignored when there are choices."""
    temperature: float = 0.0
    """0 is greedy; otherwise tokens are drawn from softmax(logits / temperature). Ignored when there are choices."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else is in the batch; None draws a fresh seed."""
    choices: Sequence[str | Sequence[int]] | None = None
    """Exactly one of these answers, as text or token ids, scored without decoding."""
    grammar: Grammar | None = None
    """What the text must match. Only `max_tokens` can cut it before it does (`Completion.incomplete`)."""
    ignore_eos: bool = False
    """Run to `max_tokens` even when the model ends earlier (for benchmarks)."""
    top_k: int | None = None
    """Draw from the `top_k` most likely tokens only (and what is as likely as the last of them); None: from all."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens that together have this probability, after `top_k`."""
    min_p: float = 0.0
    """Draw from tokens at least `min_p` times as likely as the most likely one, after `top_p`."""
    stop: Sequence[str] = ()
    """Texts at which free text ends; the completion's text goes up to the first of them."""
    return_log_probs: bool = False
    """Whether to fill `Completion.log_probs`: of the output tokens, or of whole choices."""
    choice_scoring: ChoiceScoring = "auto"
    """How choices are compared.

    "total": by the log-probability of the whole label, the sum over its tokens (and its end, if it begins another one).
    "mean": by that sum divided by the number of tokens in it, which does not favour short labels.
    "auto": by the first token where all labels differ in it, which costs no label token; otherwise as "total".
    """


@dataclass(frozen=True)
class Completion:
    """The answer to one request."""

    id: object
    token_ids: tuple[int, ...] = ()
    """Output tokens, with the end-of-sequence token where the model produced one; for a choice, the label's tokens."""
    text: str = ""
    """The output as text without the end-of-sequence token; empty when the model folder has no tokenizer."""
    finish_reason: FinishReason = "stop"
    """"stop": the model ended, a `stop` text came, or the grammar lets nothing follow; "length": `max_tokens`."""
    error: str | None = None
    """Why the request failed; None when it succeeded."""
    choice_index: int | None = None
    log_probs: tuple[float, ...] | None = None
    """Natural logarithms. With choices: one per choice, of the whole label; of its first token where that decides.

    Otherwise, if `return_log_probs`, one per output token: of the model's distribution under the grammar's mask, before
    temperature, `top_k`, `top_p` and `min_p`; so a token that the grammar forces has 0.
    """
    num_prompt_tokens: int = 0
    scores: tuple[float, ...] | None = None
    """With choices: what was compared, by `Request.choice_scoring`; the choice is the first with the largest score."""
    incomplete: bool = False
    """`max_tokens` cut a constrained output before it matched its grammar. Always with finish_reason "length"."""

    @property
    def probabilities(self) -> tuple[float, ...] | None:
        """With choices: softmax of `scores`, one number per choice, together 1."""
        if self.scores is None:
            return None
        highest = max(self.scores)
        weights = [
            1.0 if score == highest else math.exp(score - highest) for score in self.scores
        ]  # -inf - -inf is NaN
        return tuple(weight / sum(weights) for weight in weights)
