"""A lock that waiting threads get in turn."""

from __future__ import annotations

import threading


class FairLock:
    """A mutex that its holder cannot take again ahead of a thread that waits; not reentrant."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # held by the thread that is next
        self._mutex = threading.Lock()

    def __enter__(self) -> None:
        with self._turn:
            self._mutex.acquire()

    def __exit__(self, *_: object) -> None:
        self._mutex.release()

    def acquire_now(self) -> bool:
        """Take the lock if it is free; the caller then releases it by `release`."""
        return self._mutex.acquire(blocking=False)

    def release(self) -> None:
        """Give the lock back."""
        self._mutex.release()
