"""The gate: a request becomes a sequence, or a RequestError with the numbers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .choices import ChoicePlan, plan_choices
from .errors import ModelError, RequestError
from .request import Request
from .sequence import Sequence
from .stream import Job, Stream
from .tokenizer import PromptTokenizer

_MAX_PLANS = 256  # choice plans kept; a query has one or a few


@dataclass(eq=False)
class Intake:
    """What a request is checked against."""

    vocab_size: int
    max_context: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer: Callable[[], PromptTokenizer]  # loads it; raises ModelError where there is none
    _plans: dict[tuple[str | tuple[int, ...], ...], ChoicePlan] = field(default_factory=dict)

    def sequence(self, request: Request, stream: Stream) -> Sequence:
        """The request, ready for the scheduler; raises RequestError."""
        if not isinstance(request, Request):
            raise RequestError(f"expected a Request, got {type(request).__name__}")
        try:
            return self._sequence(request, stream)
        except (TypeError, ValueError, OverflowError) as problem:
            raise RequestError(f"the request has a value of a wrong type: {problem}") from problem

    def _sequence(self, request: Request, stream: Stream) -> Sequence:
        if request.grammar is not None:
            raise RequestError("constrained output by grammar is not available yet")
        if not request.temperature >= 0:
            raise RequestError(f"temperature must be 0 or more, got {request.temperature}")
        token_ids = self._token_ids(request)
        seed = secrets.randbits(63) if request.seed is None else int(request.seed) % 2**63
        if request.choices is not None:
            plan = self._choices(request.choices)
            self._check_length(len(token_ids), max(map(len, plan.labels)), "tokens of the longest choice")
            job = Job(request, stream, seed, plan, np.zeros(len(plan.labels)))
            return Sequence(token_ids, 0, labels=plan.trie, scores_only=True, payload=job)
        max_tokens = int(request.max_tokens)
        if max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {max_tokens}")
        self._check_length(len(token_ids), max_tokens, "max_tokens")
        return Sequence(token_ids, max_tokens, payload=Job(request, stream, seed, None, np.zeros(0)))

    def _check_length(self, prompt: int, output: int, what: str) -> None:
        if self.max_context is not None and prompt + output > self.max_context:
            raise RequestError(
                f"the prompt has {prompt} tokens; with {output} {what} that is {prompt + output}, and the model's"
                f" context holds {self.max_context}: shorten the prompt or the output"
            )

    def _token_ids(self, request: Request) -> npt.NDArray[np.int32]:
        token_ids = np.asarray(request.token_ids)
        if token_ids.size == 0:
            raise RequestError("the prompt has no tokens")
        if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
            raise RequestError(f"token_ids must be one row of integers, got {token_ids.dtype} {token_ids.shape}")
        outside = (token_ids < 0) | (token_ids >= self.vocab_size)
        if outside.any():
            where = int(outside.argmax())
            raise RequestError(
                f"token id {int(token_ids[where])} at index {where} is outside the model's vocabulary of"
                f" {self.vocab_size}"
            )
        return token_ids.astype(np.int32)

    def _choices(self, choices: Iterable[str | Iterable[int]]) -> ChoicePlan:
        if isinstance(choices, str):
            raise RequestError(f"choices must be a list, got the single text {choices!r}")
        given = tuple(choice if isinstance(choice, str) else tuple(map(int, choice)) for choice in choices)
        plan = self._plans.get(given)
        if plan is None:
            try:
                labels = [self.tokenizer().encode(c).tolist() if isinstance(c, str) else c for c in given]
            except ModelError as problem:
                raise RequestError(f"choices given as text need a tokenizer: {problem}") from problem
            texts = [choice if isinstance(choice, str) else "" for choice in given]
            plan = plan_choices(labels, texts, end_token=self._end_token_id(), vocab_size=self.vocab_size)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[given] = plan
        return plan

    def _end_token_id(self) -> int | None:
        try:
            return self.tokenizer().end_token_id
        except ModelError:
            return self.eos_token_ids[0] if self.eos_token_ids else None
