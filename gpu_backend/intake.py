"""The gate: a request becomes a sequence, or a RequestError with the numbers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import index

import numpy as np
import numpy.typing as npt

from .choices import ChoicePlan, ChoiceScores, plan_choices
from .context import Context
from .errors import ModelError, RequestError
from .grammar import Grammar, GrammarCompiler
from .output import CANNOT_GO_ON, Output
from .request import Request
from .sequence import Sequence
from .stop import StopFinder
from .stream import Job, Stream
from .tokenizer import PromptTokenizer

_MAX_PLANS = 256  # choice plans kept; a query has one or a few


@dataclass(eq=False)
class Intake:
    """What a request is checked against."""

    vocab_size: int
    context: Context
    eos_token_ids: tuple[int, ...]
    tokenizer: Callable[[], PromptTokenizer]  # loads it; raises ModelError where there is none
    grammars: GrammarCompiler
    forced_tokens: bool = True
    _plans: dict[tuple[bool, tuple[str | tuple[int, ...], ...]], ChoicePlan] = field(default_factory=dict)

    def prepare(self, requests: Iterable[Request]) -> None:
        """Compile the grammars of some requests, which may take a while and needs no lock of the engine's."""
        for request in requests:
            if isinstance(request, Request) and isinstance(request.grammar, Grammar):
                with suppress(RequestError):
                    self.grammars.matcher(request.grammar)

    def sequence(self, request: Request, stream: Stream) -> Sequence:
        """The request, ready for the scheduler; raises RequestError.

        Tokens that a grammar forces at the very beginning follow the prompt, as if they belonged to it.
        """
        if not isinstance(request, Request):
            raise RequestError(f"expected a Request, got {type(request).__name__}")
        try:
            return self._sequence(request, stream)
        except (TypeError, ValueError, OverflowError) as problem:
            raise RequestError(f"the request has a value of a wrong type: {problem}") from problem

    def _sequence(self, request: Request, stream: Stream) -> Sequence:
        _check_kinds(request)
        _check_sampling(request)
        token_ids = self._token_ids(request)
        seed = secrets.randbits(63) if request.seed is None else index(request.seed) % 2**63
        if request.choices is not None:
            plan = self._choices(request.choices, whole=request.return_log_probs or request.choice_scoring != "auto")
            self._check_length(len(token_ids), max(map(len, plan.labels)), "tokens of the longest choice")
            job = Job(request, stream, seed, len(token_ids), scores=ChoiceScores(plan, request.choice_scoring))
            return Sequence(token_ids, 0, labels=plan.trie, scores_only=True, payload=job)
        max_tokens = index(request.max_tokens)
        if max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {max_tokens}")
        self._check_length(len(token_ids), max_tokens, "max_tokens")
        output = self._output(request, max_tokens)
        job = Job(request, stream, seed, len(token_ids), output=output)
        forced = np.array(output.begin(), np.int32)
        if output.problem is not None:
            raise RequestError(f"{CANNOT_GO_ON}: {output.problem}")
        return Sequence(np.concatenate([token_ids, forced]), max_tokens - len(forced), payload=job)

    def _output(self, request: Request, max_tokens: int) -> Output:
        output = Output(max_tokens, frozenset(self.eos_token_ids), self.vocab_size, skips_model=self.forced_tokens)
        if request.grammar is not None:
            output.matcher = self.grammars.matcher(request.grammar)
            output.end_ids = frozenset(output.matcher.end_ids)
        elif request.ignore_eos:
            output.end_ids = frozenset()
        if request.stop:
            try:
                output.stops = StopFinder(self.tokenizer().decode, list(request.stop))
            except ModelError as problem:
                raise RequestError(f"stop texts need a tokenizer: {problem}") from problem
        return output

    def _check_length(self, prompt: int, output: int, what: str) -> None:
        longest = self.context.length
        if longest is not None and prompt + output > longest:
            raise RequestError(
                f"the prompt has {prompt} tokens; with {output} {what} that is {prompt + output}, and the model's"
                f" context holds {longest} tokens{self.context.reason}: shorten the prompt or the output"
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

    def _choices(self, choices: Iterable[str | Iterable[int]], *, whole: bool) -> ChoicePlan:
        if isinstance(choices, str):
            raise RequestError(f"choices must be a list, got the single text {choices!r}")
        given = tuple(choice if isinstance(choice, str) else tuple(map(index, choice)) for choice in choices)
        plan = self._plans.get((whole, given))
        if plan is None:
            try:
                labels = [self.tokenizer().encode_answer(c).tolist() if isinstance(c, str) else c for c in given]
            except ModelError as problem:
                raise RequestError(f"choices given as text need a tokenizer: {problem}") from problem
            texts = [choice if isinstance(choice, str) else "" for choice in given]
            plan = plan_choices(labels, texts, end_token=self._end_token_id(), vocab_size=self.vocab_size, whole=whole)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[whole, given] = plan
        return plan

    def _end_token_id(self) -> int | None:
        try:
            return self.tokenizer().end_token_id
        except ModelError:
            return self.eos_token_ids[0] if self.eos_token_ids else None


def _check_kinds(request: Request) -> None:
    """Types, and options that contradict each other."""
    if request.grammar is not None:
        if not isinstance(request.grammar, Grammar):
            raise RequestError(
                f"grammar must be a Grammar, such as Grammar.regex('[a-z]+'), got {type(request.grammar).__name__}"
            )
        for other in ("choices", "stop", "ignore_eos"):
            if getattr(request, other):
                raise RequestError(f"grammar and {other} cannot be combined: the grammar says what the output is")
    if request.choices is not None and request.stop:
        raise RequestError("choices and stop cannot be combined: a choice is not cut")
    if request.choice_scoring not in ("auto", "total", "mean"):
        raise RequestError(f"choice_scoring must be 'auto', 'total' or 'mean', got {request.choice_scoring!r}")
    if isinstance(request.stop, str):
        raise RequestError(f"stop must be a list of texts, got the single text {request.stop!r}")
    for stop in request.stop:
        if not isinstance(stop, str) or not stop:
            raise RequestError(f"a stop text must be text of at least one character, got {stop!r}")


def _check_sampling(request: Request) -> None:
    if not 0 <= request.temperature < float("inf"):
        raise RequestError(f"temperature must be 0 or more, and finite, got {request.temperature}")
    if request.top_k is not None and index(request.top_k) < 1:
        raise RequestError(f"top_k must be at least 1, or None for no limit, got {request.top_k}")
    if not 0 < request.top_p <= 1:
        raise RequestError(f"top_p must be more than 0 and at most 1, got {request.top_p}")
    if not 0 <= request.min_p <= 1:
        raise RequestError(f"min_p must be between 0 and 1, got {request.min_p}")
