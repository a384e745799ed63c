"""Stopping a running statement: Ctrl-C, and `interrupt` from another thread."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import duckdb

from llmsql.errors import LlmsqlError

AGAIN_AFTER = 0.05  # seconds: DuckDB forgets an interrupt that comes between two of its statements


class InterruptError(LlmsqlError, duckdb.InterruptException):  # type: ignore[misc]  # DuckDB is untyped
    """A statement was stopped by `interrupt`; the message says how many rows were done."""


class Interruption:
    """Lets other threads, and Ctrl-C, stop what a session runs. Who runs calls `check` at least once a step.

    Ctrl-C is taken over in the main thread while a statement runs, and only from Python's own handler: inside DuckDB
    the handler cannot raise, so it interrupts DuckDB; anywhere else it raises KeyboardInterrupt as ever.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self.requested = False
        self.by_signal = False
        self._connection = weakref.ref(connection)  # it owns functions that hold this object
        self._lock = threading.RLock()  # the signal handler may come while the main thread holds it
        self._statement = 0  # counts; odd while one runs that may be stopped
        self._in_duckdb = False

    @contextmanager
    def statement(self) -> Iterator[None]:
        """While a statement runs; `close` ends earlier the time in which it may be stopped.

        Raises:
            KeyboardInterrupt: at the end, where Ctrl-C came too late to stop the statement.
        """
        main = threading.current_thread() is threading.main_thread()
        takes_over = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with self._lock:
            self._statement += 1
            self.requested = self.by_signal = False
        late = False
        try:
            if takes_over:
                signal.signal(signal.SIGINT, self._on_signal)
            yield
            late = self.by_signal
        finally:
            self.close()
            if takes_over:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if late:
            raise KeyboardInterrupt

    def close(self) -> None:
        """From here on the statement is not stopped any more: it is tidied up. Idempotent."""
        with self._lock:
            self._statement += self._statement % 2

    def request(self) -> None:
        """Stop the statement that runs now, if one does."""
        with self._lock:
            if self._statement % 2 == 0:
                self._interrupt_duckdb()  # a statement without calls is DuckDB's own
            elif not self.requested:
                self.requested = True
                threading.Thread(target=self._insist, args=(self._statement,), daemon=True).start()

    def check(self) -> None:
        """Where it may stop.

        Raises:
            InterruptError: it is to stop.
        """
        if self.requested and self._statement % 2:
            raise InterruptError("the statement was interrupted")

    @contextmanager
    def in_duckdb(self) -> Iterator[None]:
        """While DuckDB runs a part of the statement.

        Raises:
            InterruptError: the statement is to stop.
        """
        self.check()
        self._in_duckdb = True
        try:
            yield
        finally:
            self._in_duckdb = False

    def _insist(self, statement: int) -> None:
        while True:
            with self._lock:
                if self._statement != statement:
                    return
                self._interrupt_duckdb()
            time.sleep(AGAIN_AFTER)

    def _interrupt_duckdb(self) -> None:
        connection = self._connection()
        if connection is not None:
            connection.interrupt()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.by_signal = True
        if self._statement % 2 == 0:
            return  # it is being tidied up; `statement` raises at its end
        self.request()
        if not self._in_duckdb:
            signal.default_int_handler(number, frame)
