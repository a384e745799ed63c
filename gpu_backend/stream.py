"""One call of `Engine.generate`, and the engine's side of each of its requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from .choices import ChoiceScores
from .output import Output
from .request import Completion, Request
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import EngineStats


@dataclass(eq=False)
class Stream:
    """A caller's input, its requests in the engine, and its completions not yet yielded."""

    requests: Iterator[Request]
    stats: EngineStats = field(default_factory=EngineStats)  # of this call alone: prompt, computed and output tokens
    exhausted: bool = False
    cut: bool = False  # some of it was cancelled
    live: dict[Sequence, None] = field(default_factory=dict)
    finished: deque[Completion] = field(default_factory=deque)

    def read(self, window: int) -> list[Request]:
        """Fill the window up when it is half empty."""
        if self.exhausted or len(self.live) > window // 2:
            return []
        wanted = window - len(self.live)
        arrived = list(islice(self.requests, wanted))
        self.exhausted = len(arrived) < wanted
        return arrived

    def neglected(self) -> Sequence | None:
        """The oldest waiting request, if none of this stream runs: other streams must not keep it out for ever."""
        if any(sequence.started for sequence in self.live):
            return None
        return next(iter(self.live), None)

    def drop(self, scheduler: Scheduler) -> None:
        """Cancel all requests that are left."""
        self.cut = bool(self.live) or not self.exhausted
        for sequence in self.live:
            scheduler.remove(sequence)
        self.live.clear()
        self.exhausted = True


@dataclass(eq=False)
class Job:
    """What the engine keeps for a sequence, as its `payload`."""

    request: Request
    stream: Stream
    seed: int
    num_prompt_tokens: int
    scores: ChoiceScores | None = None  # of a request with choices
    output: Output | None = None  # of any other


def job_of(sequence: Sequence) -> Job:
    """The engine's side of a sequence."""
    job: Job = sequence.payload  # type: ignore[assignment]  # a cast would cost more than all else here
    return job
