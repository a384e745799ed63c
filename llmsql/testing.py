"""A model made of a Python function, for tests of queries: ours, and those that users write for their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from llmsql.fingerprint import function_fingerprint
from llmsql.functions import Call
from llmsql.model import Answer, Measure
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics


class FakeModel:
    """Answers with `fn(prompt, fields, options)`, where a text is wanted; an exception in `fn` fails that row.

    `fields` holds the fields that are not NULL; `options` the call's function, choices and options. `calls` counts the
    rows asked over the model's life. `connect(cache=…)` keeps its answers under `fingerprint`, by default a digest of
    the function's code. `context`, if given, is how many characters of JSON the rows of a group may have together
    before llm_agg asks about them in parts.

    >>> import llmsql
    >>> from llmsql.testing import FakeModel
    >>> con = llmsql.connect(model=FakeModel(lambda prompt, fields, options: fields["x"].upper()))
    >>> con.sql("SELECT llm('Shout', x) AS y FROM (VALUES ('a'), ('b')) t(x)").fetchall()
    [('A',), ('B',)]
    >>> con.last_query.model_calls
    2
    >>> con.close()
    """

    def __init__(
        self,
        fn: Callable[[str, dict[str, object], dict[str, Any]], str],
        *,
        fingerprint: bytes | None = None,
        context: int | None = None,
    ):
        self.fn = fn
        self.context = context
        self.calls = 0
        self.fingerprint = function_fingerprint(fn) if fingerprint is None else fingerprint
        self._lock = threading.Lock()

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """One `fn` call a row, in the order of the rows."""
        assert call.prompt is not None
        for row, values in enumerate(fields.to_pylist()):
            with self._lock:
                self.calls += 1
            shown = {name: value for name, value in values.items() if value is not None}
            if call.is_aggregate:
                shown = {name: [_without_nulls(item) for item in items] for name, items in shown.items()}
            try:
                text = self.fn(call.prompt, shown, call.options())
            except Exception as problem:
                yield Answer(row, None, f"{type(problem).__name__}: {problem}")
                continue
            if isinstance(text, str):
                yield Answer(row, text)
            else:
                yield Answer(row, None, f"the model function returned {text!r}, not a text")

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """In characters of JSON, against `context`."""
        shown = (_without_nulls(item) for item in items.to_pylist())
        return Measure(self.context, [len(json.dumps(item, ensure_ascii=False, default=str)) for item in shown])

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, so that the model can travel to a Spark worker, where it counts for itself."""
        return {"fn": self.fn, "calls": self.calls, "fingerprint": self.fingerprint, "context": self.context}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["fn"], fingerprint=state["fingerprint"], context=state["context"])  # type: ignore[misc]
        self.calls = state["calls"]

    def close(self) -> None:
        """Nothing to release."""


def _without_nulls(item: Any) -> Any:
    """A row of a group without the fields that are NULL."""
    return {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item
