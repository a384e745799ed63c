"""A lock that waiting threads get in turn, and that Ctrl-C does not break into."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from .interrupts import HeldInterrupts


class FairLock:
    """A mutex that its holder cannot take again ahead of a thread that waits; not reentrant.

    SIGINT is held back while the main thread has the lock or waits for it.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()  # held by the thread that is next
        self._mutex = threading.Lock()
        self._interrupts: HeldInterrupts  # of the thread that has the mutex

    def __enter__(self) -> None:
        interrupts = HeldInterrupts()
        with self._turn:
            self._mutex.acquire()
        self._interrupts = interrupts

    def __exit__(self, *_: object) -> None:
        interrupts = self._interrupts
        self._mutex.release()
        interrupts.deliver()

    def interruptible(self) -> AbstractContextManager[None]:
        """Lets SIGINT through, for work that may end anywhere; only for the holder."""
        return self._interrupts.lifted()

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Take the lock if it is free at once; says whether it was."""
        interrupts = HeldInterrupts()
        taken = self._mutex.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._mutex.release()
            interrupts.deliver()
