"""The exceptions that llmsql raises. All of them derive from `LlmsqlError`."""

from __future__ import annotations


class LlmsqlError(Exception):
    """Base of every error that llmsql raises on purpose."""


class CallError(LlmsqlError):
    """An LLM call in a statement is written wrongly: arguments, options, or columns it names.

    `line` and `column` (1-based) point at the call in the statement, when it came from one.
    """

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None):
        self.line = line
        self.column = column
        super().__init__(f"{message} (line {line}, column {column})" if line is not None else message)


class QueryError(LlmsqlError):
    """A statement with LLM calls cannot be parsed, bound or executed by the SQL engine."""


class ModelError(LlmsqlError):
    """A model cannot be found, loaded, or run."""


class RowError(LlmsqlError):
    """A row failed and the call said `on_error := 'fail'`; the message shows the row's values."""


class BudgetError(LlmsqlError):
    """A statement would cost, or has cost, more than `max_rows`, `max_tokens` or `max_seconds` allow."""


class SettingError(LlmsqlError):
    """A setting passed to `connect` or `register` is unknown or has a value out of range."""


class ClosedError(LlmsqlError):
    """A session was used after `close()`."""
