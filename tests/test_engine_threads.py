from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = "import os, {first}; from llmsql.gpu_backend import EngineError; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("first", "variables", "expected"),
    [
        ("sys", {}, "5000"),
        ("sys", {"GOMP_SPINCOUNT": "5"}, "5"),
        ("sys", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("torch", {}, "None"),
    ],
)
def test_idle_threads_sleep_unless_the_user_chose(first: str, variables: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    script = SCRIPT.format(first=first)
    out = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == expected
