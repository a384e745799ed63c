"""A connection to an engine that somebody serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from llmsql.errors import LlmsqlError, ModelError
from llmsql.serving import protocol
from llmsql.serving.ahead import Ahead, interruptible
from llmsql.serving.protocol import Question, flight

TICK = 0.1  # seconds
TIMEOUT = 20.0  # seconds for an engine to say that it is there
MESSAGES_AHEAD = 16  # of answers that are not read yet
# What gRPC says, and what to do about it.
ADVICE = {
    "certificate has expired": "the engine's certificate must be renewed",
    "is not in peer certificate": "the engine's certificate is for other host names: use one of these in the address",
    "certificate verify failed": "give the file of who signed the engine's certificate (tls_root=…)",
    "wrong version number": "the engine is without TLS: its address begins with grpc://",
    "Socket closed": "if the engine has TLS, its address begins with grpc+tls://",
}


class LostError(ModelError):
    """There is no engine at the other end, or not any more."""


class EngineClient:
    """One channel to an engine; any number of threads may use it at once.

    Args:
        location: as for `EngineServer`.
        token: what the engine wants to see.
        root_certificates: PEM, of who signed the engine's certificate; None takes those of the system.

    Raises:
        LostError: nobody listens there. ModelError: wrong token, another protocol, or no llmsql engine.
    """

    def __init__(self, location: str, token: str | None = None, root_certificates: bytes | None = None):
        self.location = location
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        self._options = flight.FlightCallOptions(headers=headers)
        options = {} if root_certificates is None else {"tls_root_certs": root_certificates}
        try:
            self._client = flight.FlightClient(location, **options)
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise ModelError(f"{location!r} is no place of an engine: {problem}") from problem
        self._lease: tuple[Any, Any] | None = None
        self._lock = threading.Lock()
        self._running: list[Any] = []  # the streams of calls
        try:
            self.about: dict[str, Any] = self._describe(flight.FlightCallOptions(headers=headers, timeout=TIMEOUT))
        except BaseException:
            self.close()
            raise

    @property
    def largest_request(self) -> int:
        """Bytes of one request at most, as `protocol.table_size` counts."""
        return int(self.about["max_request_bytes"])

    def fingerprint(self) -> bytes:
        """The fingerprint of the engine's model; an engine that has just been started may have to read its files."""
        return bytes.fromhex(self._action("fingerprint", self._options).decode())

    def hold(self) -> None:
        """Take a lease: the engine stays as long as this connection does.

        Raises:
            LostError: the engine is ending.
        """
        self._lease = self._start(Question("lease"))
        try:
            interruptible(self._lease[1].read_chunk)
        except (flight.FlightError, pa.ArrowException, OSError, RuntimeError) as problem:  # Runtime: a StopIteration
            raise LostError(str(self._meant(problem))) from problem

    def tell(self, question: Question, fields: pa.Table) -> dict[str, Any]:
        """The answer to a question that is not about single rows."""
        told = [json.loads(message) for _, message in self.exchange(question, fields) if message is not None]
        if not told:
            raise LostError(f"the engine at {self.location} ended the call without an answer")
        found: dict[str, Any] = told[-1]
        return found

    def exchange(
        self, question: Question, fields: pa.Table, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[pa.RecordBatch | None, bytes | None]]:
        """Send a table, and yield the messages that come back, as (table, metadata). Closing it cancels the call.

        `tick` is called now and then while it waits; what it raises cancels the call too.

        Raises:
            LostError: the connection broke. Other errors of llmsql: as the engine raised them.
        """
        writer, reader = self._start(question)
        ahead = Ahead(self._run(writer, reader, fields), MESSAGES_AHEAD)
        with self._lock:
            self._running.append(reader)
        try:
            while not ahead.finished:
                yield from ahead.take(TICK)
                tick()
        finally:
            if not ahead.finished:
                reader.cancel()
            ahead.close()
            with self._lock:
                self._running.remove(reader)

    def close(self) -> None:
        """Give the lease back, cancel the calls that run, and close the channel. Idempotent."""
        with self._lock:
            for reader in self._running:
                reader.cancel()
        lease, self._lease = self._lease, None
        if lease is not None:
            writer, reader = lease
            reader.cancel()
            with suppress(Exception):
                writer.close()
        with suppress(Exception):
            self._client.close()

    def _start(self, question: Question) -> tuple[Any, Any]:
        descriptor = flight.FlightDescriptor.for_command(question.to_bytes())
        try:
            started: tuple[Any, Any] = interruptible(lambda: self._client.do_exchange(descriptor, self._options))
        except (flight.FlightError, pa.ArrowException, OSError) as problem:
            raise self._meant(problem) from problem
        return started

    def _run(self, writer: Any, reader: Any, fields: pa.Table) -> Iterator[tuple[pa.RecordBatch | None, bytes | None]]:
        try:
            writer.begin(fields.schema)
            for batch in protocol.messages(fields):
                writer.write_batch(batch)
            writer.done_writing()
            while True:
                try:
                    chunk = reader.read_chunk()
                except StopIteration:
                    return
                message = chunk.app_metadata
                yield chunk.data, None if message is None else message.to_pybytes()
        except (flight.FlightError, pa.ArrowException, OSError) as problem:
            raise self._meant(problem) from problem
        finally:
            with suppress(Exception):  # says again what is known
                writer.close()

    def _describe(self, options: Any) -> dict[str, Any]:
        try:
            about = json.loads(self._action("describe", options))
            spoken = about["protocol"]
        except (ValueError, TypeError, KeyError):
            raise ModelError(f"there is something at {self.location}, but it is no llmsql engine") from None
        if spoken != protocol.PROTOCOL:
            raise ModelError(
                protocol.other_protocol(f"the engine at {self.location}", spoken, about.get("version"), "this side")
            )
        found: dict[str, Any] = about
        return found

    def _action(self, name: str, options: Any) -> bytes:
        def ask() -> bytes:
            return b"".join(result.body.to_pybytes() for result in self._client.do_action((name, b""), options))

        try:
            return interruptible(ask)
        except (flight.FlightError, pa.ArrowException, OSError) as problem:
            raise self._meant(problem) from problem

    def _meant(self, problem: Exception) -> LlmsqlError:
        """What a problem on the wire means."""
        if isinstance(problem, flight.FlightUnauthenticatedError):
            return ModelError(
                f"the engine at {self.location} refuses the token: it is wrong or missing (token=…, or $LLMSQL_TOKEN)"
            )
        if isinstance(problem, flight.FlightError):
            said = protocol.read_failure(problem)
            if said is not None:
                return said
        text = str(problem).split(" gRPC client debug context")[0].split("error, with message: ")[-1].rstrip(". ")
        if isinstance(problem, NotImplementedError) or "UNIMPLEMENTED" in str(problem):
            return ModelError(f"there is something at {self.location}, but it is no llmsql engine ({text})")
        advice = next((f" ({advice})" for said, advice in ADVICE.items() if said in text), "")
        return LostError(f"the engine at {self.location} cannot be reached: {text}{advice}")
