"""A folder of this user's on this machine, which nobody else can read: locks, sockets, tokens."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from llmsql.errors import ModelError, SettingError

LONGEST_SOCKET = 100  # bytes of a socket's path; the system's limit is 104 or 108


def runtime_folder() -> Path:
    """$LLMSQL_RUNTIME_DIR, or `llmsql` below $XDG_RUNTIME_DIR, or one of the user's own in the temporary folder.

    It is made with mode 0700.

    Raises:
        ModelError: it belongs to somebody else, others may read it, it is a link, or it cannot be made.
    """
    named, runtime = os.environ.get("LLMSQL_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    if named:
        folder = Path(named)
    elif runtime and os.access(runtime, os.W_OK | os.X_OK):
        folder = Path(runtime) / "llmsql"
    else:
        folder = Path(tempfile.gettempdir()) / f"llmsql-{os.getuid()}"
    advice = "remove it, or name another with $LLMSQL_RUNTIME_DIR"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
    except OSError as problem:
        raise ModelError(f"the folder {folder} cannot be made ({problem.strerror}): {advice}") from problem
    if not stat.S_ISDIR(facts.st_mode):
        raise ModelError(f"{folder} is no folder: {advice}")
    if facts.st_uid != os.getuid():
        raise ModelError(f"the folder {folder} belongs to another user (uid {facts.st_uid}): {advice}")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise ModelError(
            f"the folder {folder} is open to other users (mode {stat.S_IMODE(facts.st_mode):o}, not 700): {advice}"
        )
    if len(os.fsencode(folder)) > LONGEST_SOCKET - 25:
        raise ModelError(f"the path {folder} is too long for a socket: name a shorter one with $LLMSQL_RUNTIME_DIR")
    return folder


def write_private(path: Path, values: dict[str, Any]) -> None:
    """Write JSON that only this user can read, all at once."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # has mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    os.replace(name, path)


def read_private(path: Path) -> dict[str, Any] | None:
    """What `write_private` wrote; None when there is nothing, or nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def read_pem(path: Path, kind: str) -> bytes:
    """A file with a "CERTIFICATE" or a "PRIVATE KEY".

    Raises:
        SettingError: it cannot be read, or is not PEM, or has none of that kind.
    """
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise SettingError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if b"-----BEGIN" not in text:
        raise SettingError(f"{path} is not a PEM file")
    if f"{kind}-----".encode() not in text:
        raise SettingError(f"{path} has no {kind.lower()} in it")
    return text


class FileLock:
    """A lock on a file that ends with the last process that has its descriptor open, however that process ends."""

    def __init__(self, path: Path):
        self.path = path
        self.descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody has it."""
        import fcntl  # not on Windows

        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        """Close this process's descriptor; a child that got it still holds the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
