"""What all tests share."""

from __future__ import annotations

import os

# Before torch is loaded: idle OpenMP threads that spin make tests many times slower beside any other process.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
