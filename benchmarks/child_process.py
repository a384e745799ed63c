"""Seconds and peak memory of a function, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa


def run_apart(function: Callable[[], Any], repeats: int, warm_up: Callable[[], Any]) -> tuple[Any, float, float]:
    """The function's result, the least CPU seconds of some runs, and MiB that the first held at most.

    `warm_up` runs before, so that what libraries keep for good is not counted.

    On Linux in a forked process, whose resident memory is read before and at its peak; elsewhere in this one, with what
    tracemalloc knows of, which is numpy and Python but not Arrow.
    """
    if not sys.platform.startswith("linux"):
        return _run_traced(function, repeats)
    _release()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run_forked, args=(function, repeats, warm_up, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"the measured process ended without a result, exit code {process.exitcode}") from None
    finally:
        process.join()


def _run_forked(function: Callable[[], Any], repeats: int, warm_up: Callable[[], Any], sender: Connection) -> None:
    warm_up()  # also maps the pages of libraries, which a fork leaves out
    _release()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _status("VmRSS")
    result, seconds = _timed(function)
    peak = _status("VmHWM") - before
    seconds = min([seconds, *(_timed(function)[1] for _ in range(repeats - 1))])
    sender.send((result, seconds, peak / 1024))


def _run_traced(function: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    seconds = min(_timed(function)[1] for _ in range(repeats))
    tracemalloc.start()
    result = function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, seconds, peak / 2**20


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


def _release() -> None:
    """Give free memory back, so that the child cannot take it without being seen."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """An entry of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
