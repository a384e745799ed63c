"""Ctrl-C while the engine's books are being written: it waits until they are whole again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class HeldInterrupts:
    """Holds SIGINT back from the moment it is made until `deliver`.

    Only the main thread runs signal handlers, so elsewhere, or where the handler is not Python's, this does nothing.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._arrived = False
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._hold)

    def deliver(self) -> None:
        """Let SIGINT through again, also one that came in the meantime."""
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._arrived:
            self._arrived = False
            self._handler(signal.SIGINT, None)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let SIGINT through for a while."""
        try:
            self.deliver()
            yield
        finally:
            if self._handler is not None:
                signal.signal(signal.SIGINT, self._hold)

    def _hold(self, _: int, frame: FrameType | None) -> None:
        self._arrived = True
