"""The text that one request has generated so far, and when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from .grammar import Matcher
from .request import FinishReason
from .stop import StopFinder

CANNOT_GO_ON = "the grammar cannot be followed any further"
"""The error of a request whose grammar came to a dead end, or to one of llguidance's limits."""


@dataclass(eq=False)
class Output:
    """Generated tokens, sampled and forced; `finish_reason` is set as soon as nothing more is to come."""

    max_tokens: int
    end_ids: frozenset[int]  # at which the text ends
    vocab_size: int
    matcher: Matcher | None = None
    stops: StopFinder | None = None
    skips_model: bool = True  # whether forced tokens are added at once; otherwise the model is asked and must agree
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)  # of each token
    finish_reason: FinishReason | None = None
    text_before_stop: str | None = None
    _forced: deque[int] = field(default_factory=deque)  # the rest of a forced run, if the model is asked for it

    def begin(self) -> list[int]:
        """The tokens that are forced before the model is asked for the first time, if it is not asked for them."""
        assert not self.token_ids
        if self.matcher is None:
            return []
        if self.matcher.done:
            self.finish_reason = "stop"
        else:
            self._force(self.matcher.start)
        return list(self.token_ids)

    def add(self, token_id: int, log_prob: float = 0.0) -> list[int]:
        """Take a sampled token; returns it and the tokens that it forces. Look at `problem` afterwards."""
        assert self.finish_reason is None
        if self.matcher is None:
            self._add(token_id, log_prob)
            return [token_id]
        before = len(self.token_ids)
        was_forced = self.expected is not None
        if was_forced:
            forced = self._forced.popleft()
            assert forced == token_id
        self._add(token_id, log_prob)
        if self.finish_reason is None and not was_forced:
            self._force(self.matcher.forced())
        return self.token_ids[before:]

    @property
    def expected(self) -> int | None:
        """The next token, where it is forced and the model is asked all the same."""
        return self._forced[0] if self._forced else None

    @property
    def incomplete(self) -> bool:
        """Whether `max_tokens` came before the grammar was satisfied."""
        return self.finish_reason == "length" and self.matcher is not None and not self.matcher.satisfied

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot be followed any further; None while it can."""
        return None if self.matcher is None else self.matcher.problem

    def text(self, decode: Callable[[tuple[int, ...]], str]) -> str:
        """The text without the end of the sequence or the stop text; `decode` is for tokens without a grammar."""
        if self.text_before_stop is not None:
            return self.text_before_stop
        ended = bool(self.token_ids) and self.token_ids[-1] in self.end_ids
        token_ids = tuple(self.token_ids[:-1] if ended else self.token_ids)
        return decode(token_ids) if self.matcher is None else self.matcher.text(token_ids)

    def _force(self, token_ids: Sequence[int]) -> None:
        """A run of forced tokens is the tokenizer's for its whole text, so it is taken as a whole also one by one."""
        run = list(takewhile(lambda token_id: token_id < self.vocab_size, token_ids))
        if not self.skips_model:
            self._forced.extend(run)
            return
        for token_id in run:
            if self.finish_reason is None and self.problem is None:
                self._add(token_id, 0.0)

    def _add(self, token_id: int, log_prob: float) -> None:
        self.token_ids.append(token_id)
        self.log_probs.append(log_prob)
        if token_id in self.end_ids:
            self.finish_reason = "stop"
            return
        if self.matcher is not None and self.matcher.push(token_id) and self.matcher.done:
            self.finish_reason = "stop"
        elif self.stops is not None and (text := self.stops.push(token_id)) is not None:
            self.text_before_stop = text
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.max_tokens:
            self.finish_reason = "length"
