"""The Flight service: a model that several clients ask at once."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

import llmsql
from llmsql.errors import LlmsqlError, ModelError, SettingError
from llmsql.model import Model, measure
from llmsql.serving import protocol
from llmsql.serving.ahead import Ahead
from llmsql.serving.private_files import read_pem
from llmsql.serving.protocol import Question, flight
from llmsql.serving.turns import WATCH, Turn, Turns
from llmsql.statistics import StageStatistics

LOOPBACK = "127.0.0.1"
ANSWERS_AHEAD = 1024  # of a client that reads slowly
SHUTDOWN = 5.0  # seconds for calls to end
_log = logging.getLogger("llmsql.serving")


@dataclass(frozen=True)
class Limits:
    """What clients may ask: bytes of one request (`protocol.table_size`), and requests in the works at one time.

    Further requests wait for their turn, and send nothing meanwhile; see `Turns`.
    """

    max_request_bytes: int = 256 * 2**20
    max_requests: int = 32


class EngineServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves `model` from the moment it is made until `stop`.

    Every client's batches meet in the model, and so in one scheduler. A client that fails, or goes away, ends its own
    call only.

    Args:
        model: who answers; the server does not close it.
        name: what clients see the model called.
        location: where to listen: `grpc://host:port` (port 0 takes a free one), `grpc+tls://…` or `grpc+unix:///path`.
        token: what clients must show; None lets in everybody who reaches the location.
        fingerprint: the model's, as in `Model`; called once, when a client wants it.
        limits: see `Limits`.
        certificate: PEM files of certificate and key, for `grpc+tls`.

    Raises:
        SettingError: another machine could reach the location, and there is no token; or files cannot be read.
        ModelError: nothing can listen there.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        location: str = "grpc://127.0.0.1:0",
        token: str | None = None,
        fingerprint: Callable[[], bytes] | None = None,
        limits: Limits = Limits(),
        certificate: tuple[Path, Path] | None = None,
    ):
        self._model = model
        self._name = name
        self._limits = limits
        self._fingerprint = fingerprint
        self._known_fingerprint: bytes | None = None
        self._fingerprint_lock = threading.Lock()
        self._turns = Turns(limits.max_requests)
        self._changed = threading.Condition()
        self._leases = 0
        self._was_held = False
        self._last_lease = time.monotonic()
        self._ending = threading.Event()
        options: dict[str, Any] = {}
        if token is not None:
            options["middleware"] = {"token": _TokenCheck(token)}
        elif not is_private(location):
            raise SettingError(f"{location} can be reached from other machines: give a token, or listen on {LOOPBACK}")
        if certificate is not None:
            options["tls_certificates"] = [tuple(map(read_pem, certificate, ("CERTIFICATE", "PRIVATE KEY")))]
        try:
            super().__init__(location, **options)
        except (pa.ArrowException, OSError) as problem:
            raise ModelError(f"nothing can listen at {location}: {_refusal(location) or problem}") from problem

    # -- what clients call --------------------------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """`describe`: who answers, under which limits. `fingerprint`: the model's, in hexadecimal digits."""
        with _failures("action"):
            if action.type == "describe":
                about = {
                    "protocol": protocol.PROTOCOL,
                    "version": llmsql.__version__,
                    "model": self._name,
                    "max_request_bytes": self._limits.max_request_bytes,
                    "pid": os.getpid(),
                }
                return [json.dumps(about).encode()]
            if action.type == "fingerprint":
                return [self._own_fingerprint().hex().encode()]
            raise ModelError(f"this is an llmsql engine, and there is no action {action.type!r}")

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """A `Question` in the descriptor, its table of fields in batches; answers as they come, with counters."""
        with _failures("request"):
            question = Question.from_bytes(descriptor.command)
            if question.method == "lease":
                return self._lease(context, writer)
            self._check_size(question.size)
            self._check_model(question)
            with self._turns.turn(lambda: self._check_wanted(context)) as turn:
                fields = self._read_fields(reader, turn)
                if question.method == "answer":
                    self._answer(question, fields, context, writer, turn)
                else:
                    writer.write_metadata(json.dumps(self._told(question, fields)).encode())

    # -- the other side -----------------------------------------------------------------------------------------------

    @property
    def leases(self) -> int:
        """How many clients hold the engine."""
        with self._changed:
            return self._leases

    def end_when_unused(
        self, seconds: float, stop: threading.Event, *, first: float, awaited: Callable[[], bool]
    ) -> None:
        """Wait until `stop`, or until no client has held the engine for so long; new leases are refused then.

        `first`: how long the first client may take to come, while it is `awaited`.
        """
        while not stop.wait(WATCH):
            with self._changed:
                allowed = max(seconds, first) if not self._was_held and awaited() else seconds
                if self._leases == 0 and time.monotonic() - self._last_lease >= allowed:
                    self._ending.set()
                    return

    def stop(self) -> bool:
        """End all calls and listen no more; whether that was done in good time (a client may hold a call up)."""
        self._ending.set()
        thread = threading.Thread(target=self.shutdown, name="llmsql-shutdown", daemon=True)
        thread.start()
        thread.join(SHUTDOWN)
        return not thread.is_alive()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _lease(self, context: Any, writer: Any) -> None:
        """Count a client from now until it is gone."""
        with self._changed:
            if self._ending.is_set():
                raise ModelError("the engine is ending")
            self._leases += 1
            self._was_held = True
        try:
            writer.write_metadata(b"{}")
            while not context.is_cancelled() and not self._ending.wait(WATCH):
                pass
        finally:
            with self._changed:
                self._leases -= 1
                self._last_lease = time.monotonic()

    def _answer(self, question: Question, fields: pa.Table, context: Any, writer: Any, turn: Turn) -> None:
        assert question.call is not None
        unwanted = threading.Event()

        def watch() -> None:
            if unwanted.is_set():
                raise _Gone("nobody waits for the answers")

        statistics = StageStatistics(more=question.more, watchers=[watch])
        ahead = Ahead(self._model.answer(question.call, fields, question.settings, statistics), ANSWERS_AHEAD)
        writer.begin(protocol.ANSWERS)
        told = b""
        try:
            while not ahead.finished:
                answers = ahead.take(WATCH)
                self._check_wanted(context)
                counters = protocol.counters(statistics)
                if answers:
                    table = protocol.answer_table(answers)
                    turn.wait(partial(writer.write_with_metadata, table, counters))
                elif counters != told:
                    writer.write_metadata(counters)
                told = counters
        finally:
            unwanted.set()
            ahead.close()
            if not context.is_cancelled():
                writer.write_metadata(protocol.counters(statistics))

    def _told(self, question: Question, fields: pa.Table) -> dict[str, Any]:
        assert question.call is not None
        if question.method == "measure":
            items = fields.column(0).combine_chunks()
            found = measure(self._model, question.call, question.name, items, question.settings)
            return {"room": found.room, "sizes": found.sizes}
        estimate = getattr(self._model, "estimate", None)
        if estimate is None:
            return {}
        cost = estimate(question.call, fields, question.settings)
        return {"rows": cost.rows, "prompt_tokens": cost.prompt_tokens, "computed_tokens": cost.computed_tokens}

    def _read_fields(self, reader: Any, turn: Turn) -> pa.Table:
        """The table of fields; its values are checked, because wrong offsets would be read as memory."""
        schema = turn.wait(lambda: reader.schema)
        if not len(schema) or len(set(schema.names)) < len(schema):
            raise ModelError("the request is malformed: fields need names of their own")
        batches: list[pa.RecordBatch] = []
        size = 0
        while (chunk := turn.wait(lambda: next(reader, None))) is not None:
            if chunk.data is None:
                continue
            size += protocol.table_size(chunk.data)
            self._check_size(size)
            try:
                chunk.data.validate(full=True)
            except pa.ArrowException as problem:
                raise ModelError(f"the request is malformed: {problem}") from problem
            batches.append(chunk.data)
        return pa.Table.from_batches(batches, schema)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_request_bytes:
            raise ModelError(
                f"the request is larger than this engine takes: {size:,} bytes or more, the limit is "
                f"{self._limits.max_request_bytes:,} (max_request_bytes): ask for fewer rows at a time (batch_rows)"
            )

    def _check_model(self, question: Question) -> None:
        if question.fingerprint is not None and question.fingerprint != self._own_fingerprint():
            raise ModelError("the engine was started again with another model: connect again to use it")

    def _check_wanted(self, context: Any) -> None:
        if context.is_cancelled():
            raise _Gone("the client is gone")
        if self._ending.is_set():
            raise flight.FlightUnavailableError("the engine is ending")

    def _own_fingerprint(self) -> bytes:
        with self._fingerprint_lock:
            if self._known_fingerprint is None:
                if self._fingerprint is None:
                    raise ModelError("this engine does not tell which model it has")
                self._known_fingerprint = self._fingerprint()
            return self._known_fingerprint


class _Gone(Exception):
    """The client does not wait for an answer any more."""


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets in calls that show the token, before anything of them is read."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        """Raises FlightUnauthenticatedError without the token."""
        for name, values in headers.items():
            if name.lower() == "authorization":
                for value in values:
                    shown = value.encode("utf-8", "replace") if isinstance(value, str) else value
                    if hmac.compare_digest(shown, self._expected):
                        return
        _log.warning("a call without the right token was refused")
        raise flight.FlightUnauthenticatedError("wrong token, or none")


def is_private(location: str) -> bool:
    """Whether only this machine can reach a location."""
    if location.startswith("grpc+unix:"):
        return True
    host = location.split("://", 1)[-1].rsplit(":", 1)[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may mean anything
        return False


def _refusal(location: str) -> str:
    """Why nothing can listen at a location, which Flight does not tell; "" where nothing else is wrong with it."""
    if location.startswith("grpc+unix:"):
        return ""
    host, port = location.split("://", 1)[-1].rsplit(":", 1)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as problem:
        return problem.strerror or str(problem)
    except (OverflowError, ValueError) as problem:
        return str(problem)
    return "certificate and key do not fit" if location.startswith("grpc+tls:") else ""


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Every failure becomes one that the client can read; those nobody expected are logged."""
    try:
        yield
    except _Gone:
        return
    except flight.FlightUnavailableError:
        raise
    except (flight.FlightError, pa.ArrowException) as problem:  # garbage came, or the client is gone
        _log.warning("a %s ended early: %s", what, problem)
        raise protocol.failure(ModelError(f"the {what} failed: {problem}")) from problem
    except LlmsqlError as problem:
        raise protocol.failure(problem) from problem
    except Exception as problem:
        _log.exception("a %s failed", what)
        raise protocol.failure(problem) from problem
