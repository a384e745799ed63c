"""What an engine's prefix cache may hold: the prompts of earlier batches, for each way in which prompts begin."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmsql.functions import Call
from llmsql.optimizer import Cells, Ordering, PromptMemory
from llmsql.prompt import question

MAX_MEMORIES = 16  # one has up to about 20 MiB


@dataclass
class _Shown:
    memory: PromptMemory
    calls: int = 0  # whose prompts are being shown


class PromptMemories:
    """Orders batches after earlier ones of the same question, system prompt and fields, which may run at the same time.

    capacity: tokens that the prefix cache holds.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._shown: OrderedDict[tuple[object, ...], _Shown] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shown)

    @contextmanager
    def reordering(self, call: Call, names: Sequence[str], *, more: bool) -> Iterator[Callable[[Cells], Ordering]]:
        """What orders a batch of `call` with such fields. The block lasts until its prompts have been shown.

        `more`: other rows like these are asked about too, see `PromptMemory.reorder`.
        """
        assert call.prompt is not None
        key = (call.system, question(call.prompt, call.wanted), *names)
        with self._lock:
            shown = self._shown.setdefault(key, _Shown(PromptMemory(self._capacity)))
            self._shown.move_to_end(key)
            while len(self._shown) > MAX_MEMORIES:
                self._shown.popitem(last=False)
            shown.calls += 1
        try:
            yield lambda cells: shown.memory.reorder(cells, more=more, alone=shown.calls == 1)
        finally:
            with self._lock:
                shown.calls -= 1
