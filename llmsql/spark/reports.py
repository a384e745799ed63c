"""What a task tells the driver while it asks, and hears from it: go on, or stop."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from llmsql import errors
from llmsql.budget import Budget
from llmsql.errors import LlmsqlError
from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.settings import Settings
from llmsql.spark.counters import Attempt, together
from llmsql.statistics import StageStatistics

EVERY = 0.1  # seconds between two reports of a task, if the driver does not ask for longer
ANSWER_SECONDS = 10.0  # to wait for the driver
LARGEST_LINE = 64 * 1024  # bytes
LARGEST_TEXT = 4096  # characters of an error
TOLD = ("asked", "cached", "prompt_tokens", "computed_tokens", "output_tokens", "failed", "started")
FINAL = (errors.BudgetError, errors.RowError, errors.CallError)  # would be the same when Spark tries again


@dataclass(frozen=True)
class Line:
    """How tasks reach the driver, and under whose name: the statement's, or "" for that of the Spark query."""

    host: str
    port: int
    token: str
    account: str


@dataclass(frozen=True)
class Allowance:
    """What the tasks of a statement may cost together, and where they report; it travels with what they run.

    A task that cannot reach the driver keeps to the limits by itself.
    """

    line: Line | None = None
    max_rows: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None

    @classmethod
    def of(cls, settings: Settings, line: Line | None) -> Allowance:
        """That of one query under these settings."""
        return cls(line, settings.max_rows, settings.max_tokens, settings.max_seconds)


class Report(Budget):
    """The budget of one task, which is the driver's as long as there is a line to it.

    Args:
        allowance: see there.
        stage, function: what the task works on, and which function that is, for the driver.
    """

    def __init__(self, allowance: Allowance, stage: str, function: str = "llm"):
        super().__init__(allowance.max_rows, allowance.max_tokens, allowance.max_seconds)
        self._line = allowance.line
        self._stage = stage
        self._function = function
        self._attempt = Attempt.here()
        self._parts: list[StageStatistics] = []
        self._done = 0
        self._socket: socket.socket | None = None
        self._heard = b""
        self._next = 0.0
        self._every = EVERY

    @contextmanager
    def watching(self, statistics: StageStatistics) -> Iterator[None]:
        """While the task works with these counters; the driver hears of an error that a new attempt would meet, too."""
        self._parts.append(statistics)
        statistics.watchers.append(self.look)
        try:
            yield
            self._tell({})
        except FINAL as problem:
            self._tell({"problem": [type(problem).__name__, str(problem)[:LARGEST_TEXT]]})
            raise
        finally:
            statistics.watchers.remove(self.look)

    def look(self) -> None:
        """Report, unless that was just done.

        Raises:
            LlmsqlError: the driver says stop.
        """
        if time.monotonic() >= self._next:
            self._exchange({})

    def advance(self, rows: int) -> None:
        """So many rows are done."""
        self._done += rows

    def take_rows(self, call: Call, rows: int) -> None:
        """See `Budget.take_rows`."""
        if not self._exchange({"takes": rows}):
            super().take_rows(call, rows)

    def expect_tokens(self, call: Call, estimate: Estimate) -> None:
        """See `Budget.expect_tokens`."""
        expected = [estimate.rows, estimate.prompt_tokens, estimate.computed_tokens]
        if not self._exchange({"expects": expected}):
            super().expect_tokens(call, estimate)

    def check(self, call: Call) -> None:
        """See `Budget.check`."""
        self.look()
        if self._socket is None:
            super().check(call)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._line = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, message: dict[str, Any]) -> None:
        """A last word, whose answer does not matter any more."""
        with suppress(LlmsqlError):
            self._exchange(message)

    def _exchange(self, message: dict[str, Any]) -> bool:
        """Whether the driver heard it.

        Raises:
            LlmsqlError: it says stop, or is gone after it was there.
        """
        if self._line is None:
            return False
        total = together(self._parts)
        counted = {name: getattr(total, name) for name in TOLD}
        counted["started"] = sum(part.started for part in self._parts)
        message |= {"stage": self._stage, "function": self._function}
        message |= {"attempt": list(self._attempt), "counted": counted, "done": self._done}
        message |= {"token": self._line.token, "account": self._line.account}
        if not self._line.account:
            message |= {"account": _query(), "limits": [self.max_rows, self.max_tokens, self.max_seconds]}
        known = self._socket is not None
        try:
            answer = self._ask(self._line, message)
        except (OSError, ValueError) as problem:
            self.close()
            if known:
                raise LlmsqlError("Spark's driver, for which this task works, is gone") from problem
            return False
        self._every = float(answer.get("every", EVERY))
        self._next = time.monotonic() + self._every
        if "stop" in answer:
            raise known_error(*answer["stop"])
        return True

    def _ask(self, line: Line, message: dict[str, Any]) -> dict[str, Any]:
        if self._socket is None:
            self._socket = socket.create_connection((line.host, line.port), timeout=ANSWER_SECONDS)
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while b"\n" not in self._heard:
            received = self._socket.recv(LARGEST_LINE)
            if not received:
                raise OSError("closed")
            self._heard += received
        text, self._heard = self._heard.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(text)
        return answer


def known_error(name: str, text: str) -> LlmsqlError:
    """An error of ours by the name of its class."""
    kind = getattr(errors, name, LlmsqlError)
    return (kind if isinstance(kind, type) and issubclass(kind, LlmsqlError) else LlmsqlError)(text)


def _query() -> str:
    """What Spark calls the query of this task."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return "query " + str(task and task.getLocalProperty("spark.sql.execution.id"))
