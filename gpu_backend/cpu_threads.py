"""How torch's CPU threads wait for each other; imports nothing heavy, because it must run before torch is loaded."""

from __future__ import annotations

import os
import sys


def let_idle_threads_sleep() -> None:
    """Keep GNU OpenMP's idle threads from spinning for long; a no-op once torch is loaded or where the user chose.

    By default they spin for milliseconds at every barrier. Where another process (or a thread of the database in this
    one) wants the same core, a spinning thread keeps the working one off it: on 2 cores of which one was busy, decoding
    64 rows took 30 to 60 s instead of 5 s. Short spins cost a wake-up of some microseconds on an idle machine.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
