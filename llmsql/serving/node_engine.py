"""One engine process per model and machine: the first who needs it starts it, the others find it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import llmsql
from llmsql.errors import ModelError, SettingError
from llmsql.serving.engine_client import EngineClient, LostError
from llmsql.serving.private_files import FileLock, read_private, runtime_folder
from llmsql.serving.protocol import PROTOCOL
from llmsql.serving.remote_model import RemoteModel
from llmsql.settings import Settings

START_TIMEOUT = 120.0  # seconds for a process to say where it listens; it has not loaded the model then
LOOK = 0.05  # seconds between looks for a process that somebody else has started
RESTARTS = 3  # of a process that ends while it answers one call
SHOWN = 1500  # characters of a process's last words
COMMAND = (sys.executable, "-m", "llmsql.serving.engine_process")


class NodeEngine:
    """How the clients of this machine find an engine process, or start it.

    Files in the private folder, named by a digest of all that makes the engine what it is: `.lock`, held as long as
    the process lives; `.json` with its address and token; `.sock`; `.log`, its standard error.

    Args:
        model: a folder or hub id, as `models.resolve` gives it.
        engine_options: as `Settings.engine_options`.
        linger: seconds that the process stays after its last client is gone; the first client's counts.
        environment: variables for the process, beside those of its first client.
        command: what is started.
    """

    def __init__(
        self,
        model: str,
        engine_options: Mapping[str, Any],
        *,
        linger: float,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ):
        self.model_name = model
        self._options = dict(engine_options)
        self._linger = linger
        self._environment = dict(environment or {})
        self._command = list(command)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"the engine process of {self.model_name}"

    def model(self, key: tuple[object, ...] = ()) -> RemoteModel:
        """The engine as a model, which starts the process at the first question; for `key` see `RemoteModel`."""
        return RemoteModel(
            self.name, self.client, restarts=RESTARTS, key=key, files=self.model_name, last_words=self._last_words
        )

    def client(self) -> EngineClient:
        """A connection to the process, which stays as long as there is one.

        Raises:
            ModelError: the process cannot be started; its last words are in the message.
        """
        files = _Files(runtime_folder(), self._digest())
        deadline = time.monotonic() + START_TIMEOUT
        process: subprocess.Popen[bytes] | None = None
        problem: Exception | None = None
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                raise ModelError(
                    f"{self.name} ended at its start (status {process.returncode}){files.last_words()}"
                ) from problem
            lock = FileLock(files.lock)
            if lock.acquire():  # there is none, or not any more
                try:
                    process = self._start(files, lock)
                finally:
                    lock.release()
            state = read_private(files.state)
            if state is not None:
                try:
                    return _join(state)
                except LostError as lost:  # it was killed, or is just ending
                    problem = lost
            time.sleep(LOOK)
        state = read_private(files.state) or {}
        raise ModelError(
            f"{self.name} (pid {state.get('pid', 'unknown')}) does not answer for {START_TIMEOUT:g} seconds; if it "
            f"hangs, end it, and the next question starts another{files.last_words()}"
        ) from problem

    def _start(self, files: _Files, lock: FileLock) -> subprocess.Popen[bytes]:
        assert lock.descriptor is not None
        files.remove()
        environment = {
            **os.environ,
            **self._environment,
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        }
        spec = {
            "model": self.model_name,
            "engine_options": self._options,
            "socket": str(files.socket),
            "state": str(files.state),
            "log": str(files.log),
            "linger": self._linger,
            "starter": os.getpid(),
        }
        descriptor = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            # A session of its own: Ctrl-C at the first client's terminal is not meant for the others' engine.
            process = subprocess.Popen(
                [*self._command, json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                pass_fds=[lock.descriptor],
                start_new_session=True,
            )
        except OSError as problem:
            raise ModelError(f"{self.name} cannot be started: {problem}") from problem
        finally:
            os.close(descriptor)
        # Else it would stay a zombie as long as this process lives.
        threading.Thread(target=process.wait, name="llmsql-engine-process", daemon=True).start()
        return process

    def _last_words(self) -> str:
        return _Files(runtime_folder(), self._digest()).last_words()

    def _digest(self) -> str:
        """Of all that makes two engines differ, the state of the model's files included."""
        folder = Path(self.model_name)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        parts = [
            *(PROTOCOL, llmsql.__version__, sys.executable, self._command, self.model_name),
            sorted(self._options.items(), key=lambda option: option[0]),
            [(file.name, facts.st_size, facts.st_mtime_ns) for file in files if (facts := file.stat())],
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            platform.node(),  # the folder may be one that several machines mount
        ]
        return hashlib.blake2b(json.dumps(parts, default=str).encode("utf-8", "replace"), digest_size=8).hexdigest()


def node_model(name: str, settings: Settings, key: tuple[object, ...]) -> RemoteModel:
    """The model of this machine's engine process; the process is started at the first question.

    Args:
        name: as `models.resolve` gives it.
        settings: the session's.
        key: see `RemoteModel`.

    Raises:
        SettingError: on Windows, which has none of the locks and sockets that this needs.
    """
    if sys.platform == "win32":
        raise SettingError("engine='node' needs Unix sockets and file locks: use 'process', or `llmsql serve`")
    threads = {} if settings.engine_threads is None else {"OMP_NUM_THREADS": str(settings.engine_threads)}
    node = NodeEngine(name, settings.engine_options(), linger=settings.engine_linger, environment=threads)
    return node.model(key)


class _Files:
    """Where a process leaves its traces."""

    def __init__(self, folder: Path, digest: str):
        self.lock = folder / f"{digest}.lock"
        self.state = folder / f"{digest}.json"
        self.socket = folder / f"{digest}.sock"
        self.log = folder / f"{digest}.log"

    def remove(self) -> None:
        """Take away what a process that was killed has left."""
        for path in (self.state, self.socket):
            path.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The end of the log, for a message."""
        with suppress(OSError):
            text = self.log.read_text(encoding="utf-8", errors="replace").strip()
            if text:
                return f"; it said last:\n{text[-SHOWN:]}"
        return ""


def _join(state: dict[str, Any]) -> EngineClient:
    client = EngineClient(str(state.get("location")), str(state.get("token")))
    try:
        client.hold()
    except BaseException:
        client.close()
        raise
    return client
