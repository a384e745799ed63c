"""Where the tasks of this driver report while they work: a small server that counts, and says stop."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socketserver
import threading
from collections import OrderedDict
from typing import Any, Protocol

from pyspark import SparkContext

from llmsql.budget import Budget
from llmsql.errors import BudgetError, LlmsqlError
from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.spark.counters import Attempt
from llmsql.spark.reports import EVERY, LARGEST_LINE, TOLD, Line, known_error
from llmsql.statistics import StageStatistics

PORT = "spark.llmsql.port"  # Spark's configuration: where to listen; 0 is any port, -1 does without
KEPT_ACCOUNTS = 64  # of queries that run functions
REPORTS_A_SECOND = 500  # of all tasks together
STRANGER_SECONDS = 30  # for the first word of a caller

LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """Who hears of the work of a statement's tasks."""

    def counted(self, stage: str, attempt: Attempt, part: StageStatistics, done: int) -> None:
        """A task has so far done this."""

    def failed(self, problem: LlmsqlError) -> None:
        """The statement cannot go on."""


class Account:
    """What the tasks of one statement have cost, against its budget.

    Args:
        budget: of the statement, also for what it does outside of tasks.
        listener: told of all reports.
    """

    def __init__(self, budget: Budget, listener: Listener | None = None):
        self.budget = budget
        self.problem: LlmsqlError | None = None
        self._listener = listener
        self._parts: dict[tuple[str, Attempt], StageStatistics] = {}
        self._taken: dict[tuple[str, Attempt], int] = {}
        self._lock = threading.Lock()

    def stop(self, problem: LlmsqlError) -> None:
        """From here on every task that reports hears this."""
        if self.problem is None:
            self.problem = problem

    def hear(self, message: dict[str, Any]) -> LlmsqlError | None:
        """Take a report; why the task must stop, if so."""
        stage, attempt = str(message["stage"]), Attempt(*map(int, message["attempt"]))
        part = StageStatistics()
        for name in TOLD:
            setattr(part, name, int(message["counted"][name]))
        with self._lock:
            try:
                self._count(stage, attempt, part)
                self._grant(stage, attempt, part, message)
            except BudgetError as problem:
                self.stop(problem)
            if "problem" in message and self.problem is None:
                self.problem = known_error(*message["problem"])
        if self._listener is not None:
            self._listener.counted(stage, attempt, part, int(message["done"]))
            if self.problem is not None:
                self._listener.failed(self.problem)
        return self.problem

    def _count(self, stage: str, attempt: Attempt, part: StageStatistics) -> None:
        before = self._parts.get((stage, attempt))
        self._parts[stage, attempt] = part
        self.budget.tokens += _tokens(part) - (0 if before is None else _tokens(before))

    def _grant(self, stage: str, attempt: Attempt, part: StageStatistics, message: dict[str, Any]) -> None:
        call = Call(str(message["function"]), None)
        if "takes" in message:
            rows = int(message["takes"])
            for other, taken in list(self._taken.items()):
                again = other[0] == stage and other[1][:2] == attempt[:2] and other[1] != attempt
                if again:  # an attempt that failed counts with what it asked
                    asked = min(taken, self._parts[other].asked)
                    self._taken[other] = asked
                    self.budget.rows -= taken - asked
            self._taken[stage, attempt] = self._taken.get((stage, attempt), 0) + rows
            self.budget.take_rows(call, rows)
        if "expects" in message:
            self.budget.expect_tokens(call, Estimate(*map(int, message["expects"])))
        self.budget.check(call)


class Desk:
    """Listens for the reports of tasks, for all statements of this process.

    Args:
        host: where tasks find this process.
        bind: the address to listen on.
        port: see `PORT`.
    """

    def __init__(self, host: str, bind: str, port: int = 0):
        self._token = secrets.token_hex(16)
        self._accounts: dict[str, Account] = {}
        self._queries: OrderedDict[str, Account] = OrderedDict()
        self._lock = threading.Lock()
        self._callers = 0
        desk = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                desk._serve(self)

        self._server = _Server((bind, port), Handler)
        self._host, self._port = host, self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="llmsql-desk", daemon=True).start()

    def line(self, account: str) -> Line:
        """How tasks report to an account; "" is that of the query which runs them."""
        return Line(self._host, self._port, self._token, account)

    def open(self, name: str, account: Account) -> None:
        """Take reports for an account."""
        with self._lock:
            self._accounts[name] = account

    def forget(self, name: str) -> None:
        """A statement has ended. Its tasks that still run may go on, unless it was stopped."""
        with self._lock:
            account = self._accounts.pop(name, None)
            if account is not None and account.problem is not None:
                # Without what was counted, who listened, and the stack of the error, which holds all of the statement.
                stopped = Account(account.budget)
                stopped.stop(known_error(type(account.problem).__name__, str(account.problem)))
                self._keep(name, stopped)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _keep(self, name: str, account: Account) -> None:
        self._queries[name] = account
        while len(self._queries) > KEPT_ACCOUNTS:
            self._queries.popitem(last=False)

    def _account(self, name: str, limits: list[Any] | None) -> Account | None:
        with self._lock:
            found = self._accounts.get(name) or self._queries.get(name)
            if found is None and limits is not None:  # a query of Spark's own, with functions in it
                found = Account(Budget(*limits))
                self._keep(name, found)
            return found

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        self._callers += 1
        handler.connection.settimeout(STRANGER_SECONDS)
        try:
            while True:
                line = handler.rfile.readline(LARGEST_LINE)
                if not line.endswith(b"\n"):
                    return
                message = json.loads(line)
                if not hmac.compare_digest(str(message["token"]).encode(), self._token.encode()):
                    return
                handler.connection.settimeout(None)
                account = self._account(str(message["account"]), message.get("limits"))
                problem = None if account is None else account.hear(message)
                answer: dict[str, Any] = {"every": max(EVERY, self._callers / REPORTS_A_SECOND)}
                if problem is not None:
                    answer["stop"] = [type(problem).__name__, str(problem)]
                handler.wfile.write(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError) as problem:  # a task was killed, or it was no task
            LOG.debug("a report was not understood: %r", problem)
        finally:
            self._callers -= 1


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256


_desks: dict[str, Desk | None] = {}
_desks_lock = threading.Lock()


def desk_of(context: SparkContext) -> Desk | None:
    """The desk of a Spark application's driver, which is this process; None where it is not wanted, or cannot listen.

    It listens on the address on which the driver listens for its executors, and ends with the process.
    """
    with _desks_lock:
        if context.applicationId not in _desks:
            for ended in list(_desks):  # a process has one application at a time
                desk = _desks.pop(ended)
                if desk is not None:
                    desk.close()
            _desks[context.applicationId] = _open_desk(context)
        return _desks[context.applicationId]


def _open_desk(context: SparkContext) -> Desk | None:
    conf = context.getConf()
    local = context.master.startswith("local")
    host = "127.0.0.1" if local else conf.get("spark.driver.host") or "127.0.0.1"
    bind = "127.0.0.1" if local else conf.get("spark.driver.bindAddress") or host
    port = int(conf.get(PORT, "0") or 0)
    if port < 0:
        return None
    try:
        return Desk(host, bind, port)
    except OSError as problem:
        LOG.warning("tasks cannot report: the driver cannot listen on %s port %d (%s)", bind, port, problem)
        return None


def _tokens(part: StageStatistics) -> int:
    return part.computed_tokens + part.output_tokens
