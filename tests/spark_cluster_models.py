"""Models of the cluster tests; workers import this module."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from serving_engine import node_engine

import llmsql.serving.remote_model
from llmsql.model import Answer

HALT = "halt"  # a text that halts who is asked about it, until the test lets it go on
HUGE = "huge"  # a text whose answer has 500 MB

_engines: dict[str, llmsql.serving.remote_model.RemoteModel] = {}


@dataclass(frozen=True)
class Noting:
    """The function of a `FakeModel`: notes what it is asked in a file that all processes append to.

    Texts come back in capitals. The first that is asked about a text with HALT in it waits for the file `.go` beside
    the notes.
    """

    notes: str

    def __call__(self, prompt, fields, options):
        text = "|".join(str(fields[name]) for name in sorted(fields))
        first = HALT in text and f" {text}\n" not in Path(self.notes).read_text()
        with open(self.notes, "a") as notes:
            notes.write(f"{os.getpid()} {text}\n")
        while first and not Path(self.notes).with_suffix(".go").exists():
            time.sleep(0.02)
        if options["function"] == "llm_filter":
            return "Yes" if len(text) % 2 else "No"
        return text.upper() * (125_000_000 if text == HUGE else 1)


@dataclass(frozen=True)
class Greedy:
    """Repeats its field; the first `times` that it is asked in all it needs 4 GB."""

    notes: str
    times: int

    def answer(self, call, fields, settings, statistics):
        with open(self.notes, "a") as notes:
            notes.write("0 asked\n")
        if len(Path(self.notes).read_text().splitlines()) <= self.times:
            bytearray(2**32)
        for row, values in enumerate(fields.to_pylist()):
            yield Answer(row, str(*values.values()))

    def close(self):
        pass


@dataclass(frozen=True)
class OnNode:
    """A model in an engine process of the worker's machine: `NotingModel` of serving_engine.py."""

    notes: str
    fingerprint: bytes = b"noting"

    def answer(self, call, fields, settings, statistics):
        if self.notes not in _engines:
            _engines[self.notes] = node_engine(self.notes, linger=2).model()
        return _engines[self.notes].answer(call, fields, settings, statistics)

    def close(self):
        pass
