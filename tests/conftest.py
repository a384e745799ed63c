"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is loaded: idle OpenMP threads that spin make tests many times slower beside any other process.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads answers of another one, or of the user."""
    folder: Path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LLMSQL_CACHE", str(folder / "answers.sqlite"))
