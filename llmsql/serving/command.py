"""`llmsql serve`: an engine for other processes and machines, started by hand."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from llmsql import models
from llmsql.embedded import EmbeddedModel
from llmsql.errors import LlmsqlError, SettingError
from llmsql.serving.server import LOOPBACK, EngineServer, Limits, is_private
from llmsql.settings import ENGINE_SETTINGS, ENGINE_SWITCHES, Settings, check_token, memory_bytes

PORT = 8815


def serve(arguments: Sequence[str]) -> int:
    """Run the command until Ctrl-C or SIGTERM; the exit status is 0, 1 when it cannot serve, 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    try:
        return _serve(options)
    except (LlmsqlError, OSError) as problem:
        print(f"llmsql: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llmsql: stopped", file=sys.stderr)
        return 130


def served_fingerprint(model: EmbeddedModel, settings: Settings) -> bytes:
    """The model's own fingerprint, as clients would know it from its files, unless settings change its answers."""
    own = models.files_fingerprint(model)
    names = ("dtype", "kernels", *ENGINE_SWITCHES)
    changed = {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(Settings(), name)}
    return hashlib.blake2b(own + json.dumps(changed).encode(), digest_size=16).digest() if changed else own


def _serve(options: argparse.Namespace) -> int:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise SettingError("--tls-cert and --tls-key go together")
    secure = options.tls_cert is not None
    host = f"[{options.host}]" if ":" in options.host else options.host
    location = f"{'grpc+tls' if secure else 'grpc'}://{host}:{options.port}"
    token = _token(options)
    if token is None and not is_private(location):
        raise SettingError(
            f"{options.host} can be reached from other machines: give a token (--token-file FILE, or $LLMSQL_TOKEN), "
            f"or listen on {LOOPBACK}"
        )
    limits = Limits(memory_bytes("--max-request-bytes", options.max_request_bytes), options.max_requests)
    given = {name: value for name in ENGINE_SETTINGS if (value := getattr(options, name, None)) not in (None, False)}
    settings = Settings.make(given)
    model = models.acquire(options.model, settings)
    assert isinstance(model, EmbeddedModel)
    try:
        _ = model.engine  # what is wrong with the model shows now, and the first client does not wait
        fingerprint = served_fingerprint(model, settings)
        server = EngineServer(
            model,
            name=options.model,
            location=location,
            token=token,
            fingerprint=lambda: fingerprint,
            limits=limits,
            certificate=(options.tls_cert, options.tls_key) if secure else None,
        )
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        # The port may have been 0.
        print(f"llmsql: {options.model} at {location.rsplit(':', 1)[0]}:{server.port}; Ctrl-C ends it", flush=True)
        if not secure and not is_private(location):
            print("llmsql: without TLS the token and all rows can be read on the network", file=sys.stderr)
        stop.wait()
        if not server.stop():
            os._exit(0)  # a call hangs in a client that does not read, and would keep the process
    finally:
        models.release(model)
    return 0


def _token(options: argparse.Namespace) -> str | None:
    if options.token is not None and options.token_file is not None:
        raise SettingError("give --token or --token-file, not both")
    token: str | None = options.token
    if options.token_file is not None:
        token = options.token_file.read_text(encoding="utf-8").strip()
    elif token is None:
        token = os.environ.get("LLMSQL_TOKEN") or None
    if token is not None:
        check_token(token)
    return token


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmsql serve",
        description="Serve a model to other processes and machines: llmsql.connect(engine='grpc://host:port').",
    )
    parser.add_argument("model", help="a model folder, a hub id, or 'demo'")
    parser.add_argument("--host", default=LOOPBACK, help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds what clients must show")
    parser.add_argument("--token", help="the same on the command line, where other users of the machine may see it")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    parser.add_argument("--max-request-bytes", default="256MiB", help="of one request (default: 256MiB)")
    parser.add_argument(
        "--max-requests", type=_positive, default=Limits().max_requests, help="at once; further ones wait"
    )
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--kv-memory", help="memory for the KV cache, such as 2GiB")
    parser.add_argument("--max-batch-tokens", type=_positive, help="tokens per step")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code of the model folder")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
