"""A progress bar on stderr: rows, tokens per second, share of tokens reused, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmsql.statistics import StageStatistics


@contextmanager
def progress_bar(
    label: str, total: int, statistics: StageStatistics, wanted: bool | None
) -> Iterator[Callable[[int], None]]:
    """A function that is told of newly done rows; it draws only when `wanted`, or by default on a terminal."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()) or total == 0:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = label if len(label) <= 40 else label[:39] + "…"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4, transient=False) as progress:
        task = progress.add_task(shown.replace("[", "\\["), total=total, speed="")

        def advance(rows: int) -> None:
            seconds = max(time.perf_counter() - started, 1e-6)
            speed = ""
            if statistics.prompt_tokens:
                speed = f"{statistics.prompt_tokens / seconds:,.0f} tok/s, {statistics.hit_rate:.0%} reused"
            progress.update(task, advance=rows, speed=speed)

        yield advance
