"""The process of a node's engine: serves one model on a private socket, and ends soon after its last client is gone."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmsql.errors import LlmsqlError
from llmsql.model import Model
from llmsql.serving.private_files import write_private
from llmsql.serving.server import EngineServer, Limits

FIRST_CLIENT = 30.0  # seconds for who started the process to come as its first client
NODE_LIMITS = Limits(max_request_bytes=2**30, max_requests=256)  # the clients are this user's own tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until nobody needs the engine; the argument is the JSON that `NodeEngine` writes."""
    spec = json.loads((sys.argv[1:] if arguments is None else arguments)[0])
    return run(spec, _embedded)


def run(spec: dict[str, Any], open_model: Callable[[dict[str, Any]], tuple[Model, Callable[[], bytes]]]) -> int:
    """Serve what `open_model` returns: the model, and what tells its fingerprint."""
    faulthandler.enable()  # the log says where a crash was
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token, location = secrets.token_hex(32), f"grpc+unix://{spec['socket']}"
    try:
        model, fingerprint = open_model(spec)
        server = EngineServer(
            model, name=spec["model"], location=location, token=token, fingerprint=fingerprint, limits=NODE_LIMITS
        )
    except LlmsqlError as problem:
        print(f"llmsql: {problem}", file=sys.stderr)
        return 1
    os.chmod(spec["socket"], 0o600)
    state = Path(spec["state"])
    write_private(state, {"location": location, "token": token, "pid": os.getpid()})
    server.end_when_unused(spec["linger"], stop, first=FIRST_CLIENT, awaited=lambda: os.getppid() == spec["starter"])
    # In this order: whoever finds no file waits for the lock, which ends with the process.
    state.unlink(missing_ok=True)
    if server.stop():
        model.close()
    for name in ("socket", "log"):
        Path(spec[name]).unlink(missing_ok=True)
    # Not by way of the interpreter's end: it is slow with a model's libraries, and would wait for a call that hangs in
    # a client that does not read.
    sys.stderr.flush()
    os._exit(0)


def _embedded(spec: dict[str, Any]) -> tuple[Model, Callable[[], bytes]]:
    from llmsql import models
    from llmsql.settings import Settings

    settings = Settings.make(spec["engine_options"])
    model = models.acquire(spec["model"], settings)
    return model, lambda: models.files_fingerprint(model)


if __name__ == "__main__":
    sys.exit(main())
