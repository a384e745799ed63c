"""The seam between the planner and whatever answers: a `Model` takes a call and a table of fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol, runtime_checkable

import pyarrow as pa

from llmsql.functions import Call
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics


@dataclass(frozen=True)
class Answer:
    """The model's answer to one row: its text, or why there is none.

    `truncated`: cut at `max_tokens`; `cached`: known from an earlier question.
    """

    row: int
    text: str | None
    error: str | None = None
    truncated: bool = False
    cached: bool = False


@dataclass(frozen=True)
class Measure:
    """What fits in one prompt of a call about a list of items, in units of the model's own (tokens).

    `room`: for items together, beside all else in the prompt and the answer; None is no limit. `sizes`: of each item.
    """

    room: int | None
    sizes: list[int]


@runtime_checkable
class Model(Protocol):
    """Answers calls. The embedded engine is one; `llmsql.testing.FakeModel` is another.

    A model may also have a `fingerprint`, bytes that are equal for models that answer equally, also in another process:
    then its answers can be kept in the result cache. And it may have a method
    `measure(call, name, items, settings) -> Measure`, which says how many `items` of a list field `name` fit in one
    prompt of `call`; without it all do.
    """

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """Answer `call` for every row of `fields`, in any order, each row exactly once.

        Args:
            call: prompt and options; `call.prompt` is never None here.
            fields: one column per field, named as the prompt shows it; no row is wholly NULL.
            settings: the session's settings.
            statistics: counters that the model adds its tokens to. A model that works long on an answer calls
                `statistics.tick()` meanwhile; what that raises must end its work.
        """
        ...

    def close(self) -> None:
        """Release what the model holds."""
        ...


def measure(model: Model, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
    """How many `items` of a list field called `name` fit in a prompt of `call`, as the model says."""
    own = getattr(model, "measure", None)
    if own is None:
        return Measure(None, list(repeat(0, len(items))))
    found: Measure = own(call, name, items, settings)
    return found


@contextmanager
def answering(
    model: Model, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics
) -> Iterator[Iterator[Answer]]:
    """The answers of a model, which stops working on them when the block is left."""
    answers = iter(model.answer(call, fields, settings, statistics))
    try:
        yield answers
    finally:
        close = getattr(answers, "close", None)
        if close is not None:
            close()
