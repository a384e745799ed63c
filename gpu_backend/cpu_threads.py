"""How torch's CPU threads wait for each other; imports nothing heavy, because it must run before torch is loaded."""

from __future__ import annotations

import os
import sys


def let_idle_threads_sleep() -> None:
    """Keep GNU OpenMP's idle threads from spinning for long; a no-op once torch is loaded or where the user chose.

    By default they spin for milliseconds at every barrier. Where another process (or a thread of the database in this
    one) wants the same core, a spinning thread keeps the working one off it: on 2 cores of which one was busy, decoding
    64 rows took 30 to 60 s instead of 5 s. Not to spin at all would cost a wake-up at nearly every operation:
    with 5,000 spins instead of 1,000 a batch took 5 to 10 % less time on an idle machine, and 13 % more beside a busy
    process.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
