"""Run by tests/test_serving_node.py: a node's engine process with a model that is a function, and a client of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa

from llmsql.errors import ModelError
from llmsql.functions import make_call
from llmsql.model import Answer
from llmsql.serving.engine_process import run
from llmsql.serving.node_engine import NodeEngine
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics


class NotingModel:
    """Answers "<pid> <x>" and notes in a file what was asked; the prompt says what goes wrong."""

    def __init__(self, notes):
        self.notes = Path(notes)

    def answer(self, call, fields, settings, statistics):
        for row, x in enumerate(fields.column("x").to_pylist()):
            while (call.prompt, x) in (("wait", 10), ("die", 3)) and not self.notes.with_suffix(".go").exists():
                time.sleep(0.02)
                statistics.tick()
            if call.prompt == "die" and x == 3:
                print("it was too much for me", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            with self.notes.open("a") as notes:
                notes.write(f"{os.getpid()} {x}\n")
            yield Answer(row, f"{os.getpid()} {x}")

    def close(self):
        pass


def node_engine(notes, linger=0.5, model="noting"):
    return NodeEngine(model, {"notes": str(notes)}, linger=linger, command=[sys.executable, __file__, "engine"])


def open_model(spec):
    if spec["model"] == "broken":
        raise ModelError("model folder /x: there is no config.json in it")
    if spec["model"] == "crashing":
        raise SystemExit("out of luck")
    return NotingModel(spec["engine_options"]["notes"]), lambda: b"noting"


def client(notes):
    """Ask five rows, say what came, and hold the engine until standard input ends."""
    model = node_engine(notes).model()
    answers = model.answer(make_call("llm", "Say"), pa.table({"x": range(5)}), Settings(), StageStatistics())
    print(json.dumps({"pid": model.about["pid"], "texts": [answer.text for answer in answers]}), flush=True)
    sys.stdin.read()
    model.close()


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        sys.exit(run(json.loads(sys.argv[2]), open_model))
    client(sys.argv[2])
