"""Run a test file again with Triton's interpreter.

The interpreter is chosen when triton is first imported, and compile-only tests need it off. So in an ordinary run each
file of interpreter tests holds one test, which runs the file again in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

IS_ON = os.environ.get("TRITON_INTERPRET") == "1"


def run_in_interpreter(path: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
