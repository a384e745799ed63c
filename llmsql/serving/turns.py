"""Turns of requests: so many are in the works at one time, and who keeps the engine waiting lets others go first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

WATCH = 0.25  # seconds between looks at whether a client is still there
PATIENCE = 30.0  # seconds for a client to send or to read its next message, while others wait


class Turns:
    """Lets `number` requests work at one time; further ones wait.

    A client that dies with its machine, or hangs, does not end its connection. Its request gives its place to one that
    waits, and takes a place again when the client goes on.
    """

    def __init__(self, number: int):
        self._free = number
        self._waiting: dict[Turn, float] = {}  # those whose clients are waited for, and since when
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, check: Callable[[], None]) -> Iterator[Turn]:
        """A place, when there is one. `check` is called while it waits, and ends that by raising."""
        turn = Turn(self, check)
        self._take(turn)
        try:
            yield turn
        finally:
            self._give_back(turn)

    def _take(self, turn: Turn) -> None:
        while True:
            with self._changed:
                if self._free or self._is_given_up():
                    self._free -= 1
                    turn.has_place = True
                    return
                self._changed.wait(WATCH)
            turn.check()

    def _give_back(self, turn: Turn) -> None:
        with self._changed:
            self._free += turn.has_place
            self._changed.notify()

    def _is_given_up(self) -> bool:
        """Whether a request has just lost its place, since its client lets it wait."""
        for turn, since in self._waiting.items():
            if turn.has_place and time.monotonic() - since >= PATIENCE:
                turn.has_place = False
                self._free += 1
                return True
        return False

    def _wait(self, turn: Turn, work: Callable[[], T]) -> T:
        with self._changed:
            self._waiting[turn] = time.monotonic()
        try:
            done = work()
        finally:
            with self._changed:
                del self._waiting[turn]
        if not turn.has_place:
            self._take(turn)
        return done


class Turn:
    """The place of one request; it is used by one thread."""

    def __init__(self, turns: Turns, check: Callable[[], None]):
        self.has_place = False
        self.check = check
        self._turns = turns

    def wait(self, work: Callable[[], T]) -> T:
        """What `work` returns, which waits for the client."""
        return self._turns._wait(self, work)
