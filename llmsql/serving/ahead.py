"""An iterator that runs ahead of who reads it, in a thread of its own, by a bounded number of items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Takes items from `items` until `limit` of them wait; closes it in the thread that ran it.

    Waiting for items can be interrupted (Ctrl-C), which waiting inside the iterator often cannot.
    """

    def __init__(self, items: Iterator[T], limit: int):
        self._items = items
        self._limit = limit
        self._waiting: deque[T] = deque()
        self._problem: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="llmsql-ahead", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether the iterator has ended and all of its items were taken."""
        with self._changed:
            return self._ended and not self._waiting and self._problem is None

    def take(self, timeout: float | None = None) -> list[T]:
        """All items that wait, or the next one to come; none when the time is up or the iterator has ended.

        Raises what the iterator raised, once the items before it were taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, timeout)
            taken = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            if not taken and self._problem is not None:
                problem, self._problem = self._problem, None
                raise problem
            return taken

    def close(self, timeout: float | None = None) -> None:
        """Stop at the next item, and wait until the thread is gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._limit)
                    if self._closed:
                        break
                    self._waiting.append(item)
                    self._changed.notify_all()
        except BaseException as problem:
            self._problem = problem
        finally:
            try:
                close = getattr(self._items, "close", None)
                if close is not None:
                    close()
            except BaseException as problem:
                self._problem = self._problem or problem
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def interruptible(work: Callable[[], T]) -> T:
    """What `work` returns or raises, run where Ctrl-C does not have to wait for it."""

    def once() -> Iterator[T]:
        yield work()

    return Ahead(once(), 1).take()[0]
