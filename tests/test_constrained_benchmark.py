from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "constrained.py"


def test_the_benchmark_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--quick", "--repeat", "1", "--vocab", "2100", "--threads", str(threads)]
    try:
        runpy.run_path(str(BENCHMARK))["main"](arguments)  # fails if a switch changes an answer
    finally:
        torch.set_num_threads(threads)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| JSON")]
    forced = {cells[1].strip(): int(cells[7]) for cells in lines}
    steps = {cells[1].strip(): int(cells[8]) for cells in lines}
    assert forced["JSON, neither"] == 0 < forced["JSON, both"]
    assert steps["JSON, both"] < steps["JSON, neither"]
