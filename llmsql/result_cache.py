"""The result cache: answers on disk that are not paid for twice, also not after a killed process.

One SQLite file in write-ahead mode, so that threads and processes can share it. An answer is stored by a key of all it
depends on (see `cache_keys`), as soon as it is known; failures never are. A cache that cannot be read or written costs
its savings, not the query: what is wrong is said in a warning.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_SIZE = 2**30
USED_RESOLUTION = 3600  # seconds; a hit is written down once in this time, so that reading stays reading
BUSY_SECONDS = 30
_KEYS_AT_A_TIME = 50_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, model BLOB NOT NULL, text BLOB NOT NULL, truncated INT NOT NULL, used INT NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_used ON answers (used);
CREATE TABLE IF NOT EXISTS fingerprints (file TEXT PRIMARY KEY, state TEXT NOT NULL, digest BLOB NOT NULL);
"""


class CacheWarning(UserWarning):
    """The result cache could not be used or had to be started anew; answers are not affected."""


@dataclass(frozen=True)
class CachedAnswer:
    """The text of an answer; `truncated`: it was cut at `max_tokens`."""

    text: str
    truncated: bool = False


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache: its file (None: in memory), answers, bytes on disk, and the bytes it may grow to."""

    path: str | None
    answers: int
    bytes: int
    max_bytes: int


class ResultCache:
    """Answers by key. Any number of threads and processes may use one file.

    Args:
        path: the file, made with its folder for this user alone; None keeps the answers in memory.
        max_bytes: beyond this the answers unused for longest go.

    Example:
        >>> cache = ResultCache(None)
        >>> cache.store(b"model", {b"key": CachedAnswer("Yes")})
        >>> cache.find([b"key", b"other"])
        {b'key': CachedAnswer(text='Yes', truncated=False)}
        >>> cache.close()
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, max_bytes: int = DEFAULT_SIZE):
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        self._stored_since_check = 0
        self._process = os.getpid()

    def find(self, keys: Iterable[bytes]) -> dict[bytes, CachedAnswer]:
        """The answers that are there, by key."""
        wanted = list(keys)
        found: dict[bytes, CachedAnswer] = {}
        with self._guarded() as connection:
            if connection is None:
                return found
            now = int(time.time())
            for start in range(0, len(wanted), _KEYS_AT_A_TIME):
                self._find_some(connection, wanted[start : start + _KEYS_AT_A_TIME], now, found)
        return found

    def store(self, model: bytes, answers: Mapping[bytes, CachedAnswer]) -> None:
        """Keep answers of one model; they are there for every process when this returns."""
        if not answers:
            return
        now = int(time.time())
        rows = [(key, model, _to_bytes(answer.text), answer.truncated, now) for key, answer in answers.items()]
        with self._guarded() as connection:
            if connection is None:
                return
            with connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._stored_since_check += sum(len(row[2]) + 100 for row in rows)
            if self._stored_since_check > min(self.max_bytes // 16, 2**24):
                self._stored_since_check = 0
                self._evict(connection)

    def clear(self, model: bytes | None = None) -> int:
        """Forget all answers, or those of one model (its fingerprint); returns how many."""
        with self._guarded() as connection:
            if connection is None:
                return 0
            with connection:
                if model is None:
                    count = connection.execute("DELETE FROM answers").rowcount
                else:
                    count = connection.execute("DELETE FROM answers WHERE model = ?", (model,)).rowcount
            connection.execute("PRAGMA incremental_vacuum")
            return int(count)
        return 0

    @property
    def is_empty(self) -> bool:
        """Whether there is no answer in it, or it cannot be read."""
        with self._guarded() as connection:
            return connection is None or connection.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is None
        return True

    def info(self) -> CacheInfo:
        """Its size and number of answers."""
        path = None if self.path is None else str(self.path)
        with self._guarded() as connection:
            if connection is None:
                return CacheInfo(path, 0, 0, self.max_bytes)
            (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
            return CacheInfo(path, int(count), _used_bytes(connection), self.max_bytes)
        return CacheInfo(path, 0, 0, self.max_bytes)

    def digest_of(self, file: str, state: str) -> bytes | None:
        """The digest noted for a file while it was in this state (size, time of change); see `fingerprint`."""
        with self._guarded() as connection:
            if connection is None:
                return None
            row = connection.execute("SELECT digest FROM fingerprints WHERE file = ? AND state = ?", (file, state))
            found = row.fetchone()
            return None if found is None else bytes(found[0])
        return None

    def note_digest(self, file: str, state: str, digest: bytes) -> None:
        """Note a file's digest."""
        with self._guarded() as connection:
            if connection is not None:
                with connection:
                    connection.execute("INSERT OR REPLACE INTO fingerprints VALUES (?, ?, ?)", (file, state, digest))

    def close(self) -> None:
        """Close the file; the cache opens it again when it is used again. Idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._process == os.getpid():
                connection.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection | None]:
        """The open file, or None where there is none to be had; what goes wrong inside becomes a warning."""
        with self._lock:
            connection = None
            while connection is None and not self._broken:
                try:
                    connection = self._open()
                except (sqlite3.Error, OSError) as problem:
                    self._restart_or_give_up(problem)
            try:
                yield connection
            except sqlite3.Error as problem:
                self._restart_or_give_up(problem)

    def _open(self) -> sqlite3.Connection:
        if self._process != os.getpid():  # after a fork the connection is the parent's
            self._connection, self._process = None, os.getpid()
        if self._connection is None:
            if self.path is not None:
                _make_private(self.path)
            connection = sqlite3.connect(
                ":memory:" if self.path is None else self.path, timeout=BUSY_SECONDS, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")  # safe against a killed process
                connection.executescript(_SCHEMA)
                connection.execute("CREATE TEMP TABLE wanted (key BLOB PRIMARY KEY) WITHOUT ROWID")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _find_some(
        self, connection: sqlite3.Connection, keys: list[bytes], now: int, found: dict[bytes, CachedAnswer]
    ) -> None:
        with connection:
            connection.execute("DELETE FROM wanted")
            connection.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys))
        rows = connection.execute("SELECT key, text, truncated, used FROM wanted JOIN answers USING (key)").fetchall()
        for key, text, truncated, _ in rows:
            found[key] = CachedAnswer(_to_text(text), bool(truncated))
        old = [(now, key) for key, _, _, used in rows if used < now - USED_RESOLUTION]
        if old:
            with contextlib.suppress(sqlite3.OperationalError), connection:  # read-only: not worth a word
                connection.executemany("UPDATE answers SET used = ? WHERE key = ?", old)

    def _evict(self, connection: sqlite3.Connection) -> None:
        used = _used_bytes(connection)
        if used <= self.max_bytes:
            return
        (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        surplus = int(count * (1 - 0.9 * self.max_bytes / used)) + 1
        with connection:
            connection.execute(
                "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used LIMIT ?)", (surplus,)
            )
        connection.execute("PRAGMA incremental_vacuum")

    def _restart_or_give_up(self, problem: Exception) -> None:
        self.close()
        if self.path is not None and _is_damage(problem) and self.path.exists():
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
            with contextlib.suppress(OSError):
                os.replace(self.path, aside)
                for ending in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
                warnings.warn(
                    f"the result cache {self.path} is damaged ({problem}); it was moved to {aside}",
                    CacheWarning,
                    stacklevel=5,
                )
                return
        self._broken = True
        warnings.warn(
            f"the result cache {self.path} cannot be used ({problem}); answers are not kept from here on",
            CacheWarning,
            stacklevel=5,
        )


def default_path() -> Path:
    """`$LLMSQL_CACHE`, or `llmsql/answers.sqlite` in the user's cache folder."""
    given = os.environ.get("LLMSQL_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmsql" / "answers.sqlite"


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its side files the same mode


def _used_bytes(connection: sqlite3.Connection) -> int:
    page_size, pages, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return int(page_size * (pages - free))


def _is_damage(problem: Exception) -> bool:
    text = str(problem)
    return isinstance(problem, sqlite3.DatabaseError) and (
        "not a database" in text or "malformed" in text or "no such column" in text or "columns but" in text
    )


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
