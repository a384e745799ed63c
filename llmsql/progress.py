"""Progress bars: one per stage with rows, tokens per second, share of tokens reused, time left."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from llmsql.statistics import StageStatistics, shortened_call

LABEL = 40  # characters
REDRAWN_AFTER = 0.25  # seconds, in a notebook
BAR = 24


@dataclass
class Bar:
    """One stage: rows done of `total`, and what its counters say about the speed."""

    label: str
    statistics: StageStatistics
    total: int = 0
    done: int = 0
    since: float | None = None  # it works, when it does
    seconds: float = 0.0  # in which it worked before

    def speed(self) -> str:
        """Tokens per second and the share that was reused; nothing for models that count no tokens."""
        counted = self.statistics
        if not counted.prompt_tokens:
            return ""
        # The engine takes prompts in ahead of those that it has answered.
        prompts = counted.prompt_tokens * (min(counted.asked / counted.started, 1.0) if counted.started else 1.0)
        reused = max(1 - counted.computed_tokens / prompts, 0.0) if prompts else 0.0
        return f"{(prompts + counted.output_tokens) / self.elapsed():,.0f} tok/s, {reused:.0%} reused"

    def elapsed(self) -> float:
        """Seconds in which it worked."""
        now = 0.0 if self.since is None else time.perf_counter() - self.since
        return max(self.seconds + now, 1e-6)

    def line(self) -> str:
        """All of it as a line of text."""
        share = self.done / self.total if self.total else 1.0
        left = f"{self.elapsed() * (1 - share) / share:,.0f} s" if share else "?"
        filled = round(BAR * share)
        drawn = "━" * filled + "─" * (BAR - filled)
        return f"{self.label} {drawn} {self.done:,}/{self.total:,} rows {self.speed()} ETA {left}"


class Canvas(Protocol):
    """Where bars are drawn."""

    def draw(self, bars: list[Bar]) -> None:
        """Show the bars as they are now; called often."""

    def close(self, bars: list[Bar]) -> None:
        """Show them for the last time."""


class ProgressBars:
    """The bars of one statement, in the order in which its stages begin.

    Args:
        wanted: True draws always, False never, None on a terminal and in a notebook.
    """

    def __init__(self, wanted: bool | None):
        self._wanted = wanted
        self._canvas: Canvas | None = None
        self._bars: dict[object, Bar] = {}

    @contextmanager
    def stage(self, key: object, label: str, rows: int, statistics: StageStatistics) -> Iterator[Callable[[int], None]]:
        """A function that is told of newly done rows, of which there are `rows` more.

        Args:
            key: the same for the parts of one stage, which have one bar.
            label: what stands before it.
            rows: to be done in this part.
            statistics: of the stage; the bar moves also when they tick.
        """
        if rows and self._canvas is None and self._wanted is not False:
            self._canvas = make_canvas(self._wanted)
        canvas = self._canvas
        if rows == 0 or canvas is None:
            yield lambda done: None
            return
        bar = self._bars.setdefault(key, Bar(shortened_call(label, LABEL), statistics))
        bar.total += rows
        bar.since = time.perf_counter()
        bars = list(self._bars.values())

        def advance(done: int) -> None:
            bar.done += done
            canvas.draw(bars)

        def redraw() -> None:
            canvas.draw(bars)

        statistics.watchers.append(redraw)
        try:
            yield advance
        finally:
            statistics.watchers.remove(redraw)
            bar.seconds, bar.since = bar.elapsed(), None

    def close(self) -> None:
        """Draw for the last time. Idempotent."""
        canvas, self._canvas = self._canvas, None
        if canvas is not None:
            canvas.close(list(self._bars.values()))


def make_canvas(wanted: bool | None) -> Canvas | None:
    """A notebook's output, or standard error where that is a terminal or `wanted` is True."""
    display = _notebook_display()
    if display is not None:
        return NotebookCanvas(display)
    return TerminalCanvas() if wanted or sys.stderr.isatty() else None


def _notebook_display() -> Any:
    """IPython's display function, where code runs in a notebook; IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    return getattr(sys.modules.get("IPython.display"), "display", None)


class TerminalCanvas:
    """Bars on standard error, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True, force_jupyter=False), refresh_per_second=4)
        self._tasks: list[Any] = []
        self._progress.start()

    def draw(self, bars: list[Bar]) -> None:
        """Tell rich, which draws four times a second."""
        for number, bar in enumerate(bars):
            if number == len(self._tasks):
                self._tasks.append(self._progress.add_task(bar.label, total=bar.total, speed=""))
            self._progress.update(self._tasks[number], completed=bar.done, total=bar.total, speed=bar.speed())

    def close(self, bars: list[Bar]) -> None:
        """Leave the bars as they are on the screen."""
        self.draw(bars)
        self._progress.stop()


class NotebookCanvas:
    """Bars as lines of text in the output of a notebook's cell."""

    def __init__(self, display: Callable[..., Any]):
        self._display = display
        self._id = uuid.uuid4().hex
        self._drawn = 0.0

    def draw(self, bars: list[Bar]) -> None:
        """Replace the lines, unless that was just done."""
        now = time.perf_counter()
        if now - self._drawn >= REDRAWN_AFTER:
            self._show(bars)

    def close(self, bars: list[Bar]) -> None:
        """Replace the lines for the last time."""
        self._show(bars)

    def _show(self, bars: list[Bar]) -> None:
        text = "\n".join(bar.line() for bar in bars)
        again = {"update": True} if self._drawn else {}
        self._display({"text/plain": text}, raw=True, display_id=self._id, **again)
        self._drawn = time.perf_counter()
