"""What the two sides say: a request as JSON in the descriptor, tables of fields in, tables of answers out.

A change of anything here raises `PROTOCOL`. Beside each table of answers goes the state of the counters as JSON.
Failures are Flight errors whose `extra_info` is JSON with the type and the text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

import llmsql
from llmsql import errors
from llmsql.errors import LlmsqlError, ModelError
from llmsql.functions import FUNCTIONS, Call
from llmsql.model import Answer
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

try:
    from pyarrow import flight as flight
except ImportError as problem:
    raise LlmsqlError(
        "sharing an engine needs Arrow Flight, which this pyarrow was built without: pip install pyarrow"
    ) from problem

PROTOCOL = 2
METHODS = ("answer", "estimate", "measure", "lease")
ANSWERS = pa.schema(
    [("row", pa.int64()), ("text", pa.string()), ("error", pa.string()), ("truncated", pa.bool_())],
)
#: The settings that an answer depends on; all others are the client's or the server's own.
SETTINGS = ("reorder", "follow_earlier", "max_output_tokens")
ROWS_PER_MESSAGE = 4096
BYTES_PER_MESSAGE = 2**20
LONGEST_TEXT = 2000  # bytes of an error's text: gRPC sends it in a header of at most 8 KiB
COUNTERS = tuple(f.name for f in fields(StageStatistics) if f.type in ("int", "float"))


@dataclass(frozen=True)
class Question:
    """What a client asks of a table of fields: the `Model` method, and its arguments beside the table.

    name: of the list field that `measure` is about.
    fingerprint: of the model that the client believes to ask, or None.
    more: as in `StageStatistics`.
    """

    method: str
    call: Call | None = None
    settings: Settings = field(default_factory=Settings)
    name: str = ""
    size: int = 0
    fingerprint: bytes | None = None
    more: bool = False

    def to_bytes(self) -> bytes:
        """The command of a Flight descriptor."""
        parts: dict[str, Any] = {"protocol": PROTOCOL, "version": llmsql.__version__, "method": self.method}
        if self.call is not None:
            parts["call"] = self.call.to_json()
            parts["settings"] = {name: getattr(self.settings, name) for name in SETTINGS}
            parts.update(name=self.name, size=self.size, more=self.more)
        if self.fingerprint is not None:
            parts["fingerprint"] = self.fingerprint.hex()
        return json.dumps(parts, ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_bytes(cls, command: bytes | None) -> Question:
        """The question of a descriptor.

        Raises:
            ModelError: it is none, or one of another version of the protocol.
        """
        try:
            parts = json.loads(command or b"")
            protocol = parts["protocol"]
        except (ValueError, TypeError, KeyError):
            raise ModelError("this is an llmsql engine, and the request is not one of llmsql's") from None
        if protocol != PROTOCOL:
            raise ModelError(other_protocol("the client", protocol, parts.get("version"), "this engine"))
        try:
            method = parts["method"]
            if method not in METHODS:
                raise ValueError(f"there is no method {method!r}")
            fingerprint = bytes.fromhex(parts["fingerprint"]) if "fingerprint" in parts else None
            if method == "lease":
                return cls(method, fingerprint=fingerprint)
            settings = Settings.make({name: parts["settings"][name] for name in SETTINGS})
            call = Call.from_json(parts["call"])
            _check_call(call)
            return cls(method, call, settings, str(parts["name"]), int(parts["size"]), fingerprint, bool(parts["more"]))
        except (ValueError, TypeError, KeyError, AttributeError, LlmsqlError) as problem:
            raise ModelError(f"the request is malformed: {type(problem).__name__}: {problem}") from None


def other_protocol(who: str, protocol: object, version: object, here: str) -> str:
    """What to say to a side that speaks another protocol."""
    return (
        f"{who} speaks version {protocol} of the protocol (llmsql {version}), and {here} version {PROTOCOL} "
        f"(llmsql {llmsql.__version__}): install the same llmsql on both sides"
    )


def answer_table(answers: list[Answer]) -> pa.RecordBatch:
    """Answers as they travel; characters that no UTF-8 text can hold are shown as '?'."""
    columns = [
        [answer.row for answer in answers],
        [_valid(answer.text) for answer in answers],
        [_valid(answer.error) for answer in answers],
        [answer.truncated for answer in answers],
    ]
    return pa.record_batch([pa.array(column, kind.type) for column, kind in zip(columns, ANSWERS)], schema=ANSWERS)


def read_answers(table: pa.RecordBatch) -> Iterator[Answer]:
    """The answers of an `answer_table`."""
    for row, text, error, truncated in zip(*(column.to_pylist() for column in table.columns)):
        yield Answer(row, text, error, truncated)


def counters(statistics: StageStatistics) -> bytes:
    """The counters that are not 0, as they are now."""
    found: dict[str, Any] = {name: value for name in COUNTERS if (value := getattr(statistics, name))}
    if statistics.predicted_hit_rate is not None:
        found["predicted_hit_rate"] = statistics.predicted_hit_rate
    return json.dumps(found).encode()


class CounterReader:
    """Adds what newly arrived `counters` say to the client's own."""

    def __init__(self, statistics: StageStatistics):
        self._statistics = statistics
        self._before: dict[str, Any] = {}

    def read(self, message: bytes) -> None:
        """Add what has changed since the last message."""
        now = json.loads(message)
        for name in COUNTERS:
            added = now.get(name, 0) - self._before.get(name, 0)
            if added:
                setattr(self._statistics, name, getattr(self._statistics, name) + added)
        if self._statistics.predicted_hit_rate is None:
            self._statistics.predicted_hit_rate = now.get("predicted_hit_rate")
        self._before = now


def table_size(table: pa.Table | pa.RecordBatch) -> int:
    """What counts against the limit of a request: bytes, and 8 for each value, so that NULLs are not for nothing."""
    size: int = table.nbytes + 8 * table.num_rows * max(table.num_columns, 1)
    return size


def messages(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table of fields in batches small enough to be one message each."""
    rows = max(1, min(ROWS_PER_MESSAGE, table.num_rows * BYTES_PER_MESSAGE // max(table_size(table), 1)))
    yield from table.to_batches(max_chunksize=rows)


def plain(table: pa.Table) -> pa.Table:
    """The same values without dictionaries, which would travel again with every batch."""
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            decoded = table.column(index).cast(column.type.value_type)
            table = table.set_column(index, column.name, decoded)
    return table.unify_dictionaries()


def failure(problem: BaseException) -> flight.FlightServerError:
    """A failure of the whole call as it travels."""
    kind = type(problem).__name__ if isinstance(problem, LlmsqlError) else "ModelError"
    text = (
        str(problem) if isinstance(problem, LlmsqlError) else f"the engine failed: {type(problem).__name__}: {problem}"
    )
    text = text.encode("utf-8", "replace")[:LONGEST_TEXT].decode("utf-8", "ignore")
    extra = json.dumps({"type": kind, "text": text}, ensure_ascii=False).encode()
    return flight.FlightServerError(text[:500], extra)


def read_failure(problem: flight.FlightError) -> LlmsqlError | None:
    """The error that the other side meant; None when it comes from Flight itself."""
    try:
        parts = json.loads(problem.extra_info)
        kind, text = getattr(errors, parts["type"]), parts["text"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    known = isinstance(kind, type) and issubclass(kind, LlmsqlError)
    return kind(str(text)) if known else ModelError(str(text))


def _valid(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


def _check_call(call: Call) -> None:
    """Raise ValueError for a call that `make_call` would never make: the engine trusts what it is given."""
    texts = {"prompt": call.prompt, "system": call.system, "regex": call.regex, "schema": call.schema}
    for name, text in texts.items():
        if not isinstance(text, str) and (text is not None or name == "prompt"):
            raise ValueError(f"{name!r} is {text!r}")
    if call.function not in FUNCTIONS:
        raise ValueError(f"there is no function {call.function!r}")
    if call.schema is not None and not isinstance(json.loads(call.schema), dict):
        raise ValueError("'schema' is no object")
    whole: dict[str, Any] = {"max_tokens": call.max_tokens, "seed": call.seed}
    for name, number in whole.items():
        if number is not None and (not isinstance(number, int) or number < (name == "max_tokens")):
            raise ValueError(f"{name!r} is {number!r}")
    for name, value in {"temperature": call.temperature, "minimum": call.minimum, "maximum": call.maximum}.items():
        missing = value is None and name != "temperature"
        if not missing and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(f"{name!r} is {value!r}")
    if call.temperature < 0 or (call.function == "llm_score" and (call.minimum is None or call.maximum is None)):
        raise ValueError(f"temperature {call.temperature!r}, bounds {call.minimum!r} and {call.maximum!r}")
    for name, found in {"choices": call.choices, "unordered": call.unordered}.items():
        if found is not None and not all(isinstance(text, str) for text in found):
            raise ValueError(f"{name!r} is {found!r}")
    if call.choices is not None and not call.choices:
        raise ValueError("'choices' is empty")
    _ = call.answer_type  # raises for a type that is none
