"""A model that lives in another process, as a `Model`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmsql.budget import KEPT
from llmsql.errors import ClosedError, ModelError
from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.model import Answer, Measure
from llmsql.serving import protocol
from llmsql.serving.engine_client import EngineClient, LostError
from llmsql.serving.private_files import read_pem
from llmsql.serving.protocol import CounterReader, Question
from llmsql.settings import Settings, check_token
from llmsql.statistics import StageStatistics

HEADROOM = 0.8  # of the largest request: what arrives may be a little larger than what was sent


class RemoteModel:
    """Asks an engine over Arrow Flight; it answers as it would in this process.

    Args:
        name: what errors call the engine.
        open_client: makes a connection; called at the first question, and at the next one after a connection broke.
        restarts: how often one call may open a new connection and ask again what is not answered.
        key: under which `models` shares it.
        files: the model's folder or hub id, if this machine has it.
        last_words: what the engine has said before it ended, for errors.
    """

    def __init__(
        self,
        name: str,
        open_client: Callable[[], EngineClient],
        *,
        restarts: int = 0,
        key: tuple[object, ...] = (),
        files: str | None = None,
        last_words: Callable[[], str] = str,
    ):
        self.name = name
        self.files = files
        self.key = key
        self._open_client = open_client
        self._restarts = restarts
        self._last_words = last_words
        self._client: EngineClient | None = None
        self._fingerprint: bytes | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def fingerprint(self) -> bytes:
        """Of the engine's model, as it would be in this process.

        Raises:
            ModelError: the engine cannot be reached, or refuses.
        """
        if self._fingerprint is None:
            self._fingerprint = self._retried(lambda client: client.fingerprint())
        return self._fingerprint

    @property
    def about(self) -> dict[str, Any]:
        """What the engine says of itself: model, version, process id, largest request."""
        return self._connected().about

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """Answers as they come; rows that are too many for one request go in several."""
        fields = protocol.plain(fields)
        left = np.ones(fields.num_rows, bool)
        restarts = 0
        while left.any():
            rows = np.flatnonzero(left)
            try:
                for answer in self._ask(call, fields, rows, settings, statistics):
                    left[answer.row] = False
                    yield answer
            except LostError as problem:
                restarts += 1
                if restarts > self._restarts:
                    answered = fields.num_rows - int(left.sum())
                    kept = (
                        f"; {answered:,} of {fields.num_rows:,} rows were answered before ({KEPT})" if answered else ""
                    )
                    times = f", {restarts} times in one call" if restarts > 1 else ""
                    raise ModelError(f"{problem}{times}{kept}{self._last_words()}") from problem

    def estimate(self, call: Call, fields: pa.Table, settings: Settings) -> Estimate:
        """The tokens that `answer` would run, as the engine counts them."""
        total = Estimate(0, 0, 0)
        for told in self._told(Question("estimate", call, settings), fields) if fields.num_rows else ():
            total = Estimate(*(have + told.get(name, 0) for name, have in vars(total).items()))
        return total

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """As the engine measures."""
        room: int | None = None
        sizes: list[int] = []
        for told in self._told(Question("measure", call, settings, name), pa.table({"items": items})):
            room = told["room"]
            sizes += told["sizes"]
        return Measure(room, sizes)

    def close(self) -> None:
        """Close the connection, and give back what the engine was held by. Idempotent."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(
        self, call: Call, fields: pa.Table, rows: np.ndarray, settings: Settings, statistics: StageStatistics
    ) -> Iterator[Answer]:
        client = self._connected()
        for part in self._parts(client, fields, rows):
            asked = fields if len(part) == fields.num_rows else fields.take(pa.array(part))
            size = protocol.table_size(asked)
            if len(part) == 1 and size > client.largest_request:
                yield Answer(int(part[0]), None, f"the row has {size:,} bytes, more than the engine takes in a request")
                continue
            question = Question(
                "answer", call, settings, size=size, fingerprint=self._fingerprint, more=statistics.more
            )
            reader = CounterReader(statistics)
            unanswered = np.ones(len(part), bool)
            try:
                with closing(client.exchange(question, asked, statistics.tick)) as received:  # type: ignore[type-var]
                    for table, counters in received:
                        if counters is not None:
                            reader.read(counters)
                        for answer in protocol.read_answers(table) if table is not None else ():
                            if not 0 <= answer.row < len(part) or not unanswered[answer.row]:
                                raise ModelError(f"{self.name} answered row {answer.row}, which was not asked")
                            unanswered[answer.row] = False
                            yield replace(answer, row=int(part[answer.row]))
            except LostError:
                self._drop(client)
                raise
            if unanswered.any():
                self._drop(client)
                raise LostError(f"{self.name} ended the call before all rows were answered")

    def _told(self, question: Question, table: pa.Table) -> Iterator[dict[str, Any]]:
        """What the engine tells of a table, in parts that are small enough for a request each; at least one."""
        table = protocol.plain(table)
        for rows in self._parts(self._connected(), table, np.arange(table.num_rows)) or [np.arange(0)]:
            part = table if len(rows) == table.num_rows else table.take(pa.array(rows))
            asked = replace(question, size=protocol.table_size(part))
            yield self._retried(lambda client, q=asked, p=part: client.tell(q, p))  # type: ignore[misc]

    def _parts(self, client: EngineClient, fields: pa.Table, rows: np.ndarray) -> list[np.ndarray]:
        """`rows` in runs that are small enough for a request each; one that is too large stands alone."""
        if not len(rows):
            return []
        part = fields if len(rows) == fields.num_rows else fields.take(pa.array(rows))
        if len(rows) == 1 or protocol.table_size(part) <= client.largest_request * HEADROOM:
            return [rows]
        half = len(rows) // 2
        return self._parts(client, fields, rows[:half]) + self._parts(client, fields, rows[half:])

    def _retried(self, ask: Callable[[EngineClient], Any]) -> Any:
        for left in range(self._restarts, -1, -1):
            client = self._connected()
            try:
                return ask(client)
            except LostError:
                self._drop(client)
                if not left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _connected(self) -> EngineClient:
        if os.getpid() != self._process:
            raise ModelError(
                f"this process was forked from one that uses {self.name}, whose connection it cannot use: start "
                "processes with multiprocessing's 'spawn', and connect in them"
            )
        with self._lock:
            if self._closed:
                raise ClosedError(f"the connection to {self.name} is closed")
            if self._client is None:
                self._client = self._open_client()
            return self._client

    def _drop(self, client: EngineClient) -> None:
        """The next question opens a new connection."""
        with self._lock:
            if self._client is client:
                self._client = None
        client.close()


def model_at(address: str, wanted: str, settings: Settings, key: tuple[object, ...] = ()) -> RemoteModel:
    """The model of the engine at `address`; the first question, or `about`, connects and finds what is wrong there.

    Args:
        address: such as `grpc://host:port`.
        wanted: the model's name, or the last part of it; "" is any.
        settings: the session's, for token and root certificate.
        key: see `RemoteModel`.

    Raises:
        SettingError: the root certificate cannot be read, or the token cannot travel.
    """
    token = settings.token or os.environ.get("LLMSQL_TOKEN")
    if token is not None:
        check_token(token)
    roots = None if settings.tls_root is None else read_pem(Path(settings.tls_root), "CERTIFICATE")

    def client() -> EngineClient:
        opened = EngineClient(address, token, roots)
        served = str(opened.about["model"])
        if wanted not in ("", served, Path(served).name):
            opened.close()
            raise ModelError(f"the engine at {address} has the model {served!r}, not {wanted!r}")
        return opened

    return RemoteModel(f"the engine at {address}", client, key=key)
