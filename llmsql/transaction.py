"""The transaction around a planned statement, and what is tidied up when it ends, however it ends."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import duckdb

from llmsql.duckdb_catalog import shown
from llmsql.duckdb_functions import ChunkFunctions
from llmsql.errors import QueryError
from llmsql.execution import PlanRunner
from llmsql.interruption import InterruptError, Interruption
from llmsql.statistics import QueryStatistics

LOG = logging.getLogger(__name__)


class Transactions:
    """The transactions of one session's planned statements.

    Args:
        connection: where statements run.
        functions: those on the connection, whose errors DuckDB shows as texts only.
        interruption: stops statements.
        keeps_answers: whether the answers of a statement that is stopped are in the result cache.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        functions: ChunkFunctions,
        interruption: Interruption,
        *,
        keeps_answers: bool,
    ):
        self._connection = connection
        self._functions = functions
        self._interruption = interruption
        self._keeps_answers = keeps_answers

    def is_open(self) -> bool:
        """Whether the user has a transaction open: then two statements have the same transaction number."""
        first, second = (self._connection.execute("SELECT txid_current()").fetchall() for _ in range(2))
        return bool(first == second)

    @contextlib.contextmanager
    def statement(
        self, runner: PlanRunner, statistics: QueryStatistics, *, keep: bool = True
    ) -> Iterator[Callable[[bool], None]]:
        """While a statement runs, which can be interrupted. What the runner made is dropped; errors become ours.

        The function that it gives begins a transaction, unless it is told that the user has one open; it is committed
        at the end, or rolled back after an error, or where nothing is to be kept.

        Raises:
            QueryError: DuckDB raised; InterruptError, KeyboardInterrupt: the statement was stopped.
        """
        own_transaction = False

        def begin(in_transaction: bool) -> None:
            nonlocal own_transaction
            if not in_transaction:  # one of our own, so that stages and final statement see the same rows
                self._connection.execute("BEGIN TRANSACTION")
                own_transaction = True

        with self._interruption.statement():
            try:
                yield begin
                runner.drop_scratch()
                self._interruption.close()
                if own_transaction:
                    self._connection.execute("COMMIT" if keep else "ROLLBACK")
            except BaseException as problem:
                stopped = self._interruption.requested
                LOG.info("stopped by %s", type(problem).__name__)
                self._interruption.close()
                self._abandon(own_transaction, runner)
                cause = self._functions.error or problem
                if stopped:
                    raise self._stopped(statistics) from problem
                if isinstance(cause, duckdb.Error):
                    raise QueryError(shown(cause)) from cause
                raise cause from (problem if cause is not problem else problem.__cause__)

    def _abandon(self, own_transaction: bool, runner: PlanRunner) -> None:
        with contextlib.suppress(duckdb.Error):
            if own_transaction:
                self._connection.execute("ROLLBACK")
            else:
                runner.drop_scratch()

    def _stopped(self, statistics: QueryStatistics) -> BaseException:
        """The error of a statement that was interrupted."""
        done = ", ".join(
            f"{stage.asked + stage.cached:,} of {stage.distinct:,} for {stage.call}" for stage in statistics.stages
        )
        rows = statistics.model_calls + statistics.cached
        text = f"interrupted after {rows:,} rows{' (' + done + ')' if done else ''}; "
        if self._keeps_answers:
            text += "their answers are in the result cache, so the same statement goes on from there"
        else:
            text += "their answers are not kept (the session has no result cache)"
        return KeyboardInterrupt(text) if self._interruption.by_signal else InterruptError(text)
