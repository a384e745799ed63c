"""Asking a model about distinct rows: its answers as values of the call's type, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llmsql.answers import parse_answer
from llmsql.errors import RowError
from llmsql.functions import Call
from llmsql.model import Answer, Model, answering
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics


@dataclass(frozen=True)
class Outcome:
    """The value of one row, or why it has none."""

    row: int
    value: Any
    error: str | None = None


def outcomes(
    call: Call, asked: pa.Table, model: Model, settings: Settings, statistics: StageStatistics
) -> Generator[Outcome, None, None]:
    """Ask about every row of `asked`; in the order in which the answers come, which are counted.

    To be closed, so that the model stops when the one who reads its answers does.
    """
    with answering(model, call, asked, settings, statistics) as answers:
        for answer in answers:
            statistics.cached += answer.cached
            statistics.asked += not answer.cached
            statistics.truncated += answer.truncated
            yield _outcome(call, answer, settings)
            statistics.tick()


def record_failure(
    call: Call, values: dict[str, Any], error: str, settings: Settings, statistics: StageStatistics
) -> None:
    """Count a row that failed, or stop.

    Args:
        call: what was asked.
        values: what shows the user which row it is.
        error: why.
        settings: say what happens if the call does not.
        statistics: counters to add to.

    Raises:
        RowError: `on_error` is 'fail'.
    """
    if (call.on_error or settings.on_error) == "fail":
        what = "group" if call.is_aggregate else "row"
        raise RowError(f"{call.function} failed: {error}; the {what}: {_row_text(values)}")
    statistics.add_failure(values, error)


def column_value(call: Call, value: Any, error: str | None) -> Any:
    """The value of the call for a row that was asked."""
    return {"answer": value, "error": error} if call.returns_error else value


def _outcome(call: Call, answer: Answer, settings: Settings) -> Outcome:
    if answer.error is not None:
        return Outcome(answer.row, None, answer.error)
    if answer.truncated and not call.is_free:
        tokens = call.output_tokens(settings.max_output_tokens)
        return Outcome(answer.row, None, f"the answer was cut after {tokens} tokens: raise max_tokens")
    assert answer.text is not None
    try:
        return Outcome(answer.row, parse_answer(call, answer.text))
    except ValueError as problem:
        return Outcome(answer.row, None, str(problem))


def _row_text(values: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={str(value)[:80]!r}" for name, value in values.items())
    return text if len(text) <= 400 else text[:397] + "..."
