"""The seam between the planner and whatever answers: a `Model` takes a call and a table of fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@runtime_checkable
class Model(Protocol):
    """Answers calls. The embedded engine is one; `llmsql.testing.FakeModel` is another.

    A model may also have a `fingerprint`, bytes that are equal for models that answer equally, also in another process:
    then its answers can be kept in the result cache.
    """

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """Answer `call` for every row of `fields`, in any order, each row exactly once.

        Args:
            call: prompt and options; `call.prompt` is never None here.
            fields: one column per field, named as the prompt shows it; no row is wholly NULL.
            settings: the session's settings.
            statistics: counters that the model adds its tokens to.
        """
        ...

    def close(self) -> None:
        """Release what the model holds."""
        ...
