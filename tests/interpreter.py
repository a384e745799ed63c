"""Run test files again with Triton's interpreter.

The interpreter is chosen when triton is first imported, and compile-only tests need it off. So in an ordinary run each
file of interpreter tests holds one test, `test_in_the_interpreter`; the first of them runs all of these files again, in
one process with TRITON_INTERPRET=1, and each says what became of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

IS_ON = os.environ.get("TRITON_INTERPRET") == "1"
SECONDS = 580


def check_in_interpreter(request: pytest.FixtureRequest) -> None:
    """Fail with the tests of the file at hand that fail in the interpreter; of the others the same is found here."""
    own = request.path.name
    files = {str(item.path) for item in request.session.items if item.name == request.node.name}
    status, output = _run(tuple(sorted(files)))
    found = re.findall(r"^(PASSED|FAILED|ERROR) (\S+?)(?:::|\s|$)", output, re.MULTILINE)
    became = [outcome for outcome, path in found if Path(path).name == own]
    assert status in (0, 1), output
    assert became, output
    assert set(became) == {"PASSED"}, output


@cache
def _run(files: tuple[str, ...]) -> tuple[int, str]:
    """The exit status of pytest and the end of what it says, which names each test."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rpfE", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, done.stdout[-40_000:] + done.stderr[-2000:]
