from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "engine.py"


def test_the_benchmark_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARK))["main"](["--quick", "--threads", str(threads)])
    finally:
        torch.set_num_threads(threads)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0].startswith("| run | seconds |")
    computed = {cells[1].strip(): int(cells[3]) for cells in (line.split("|") for line in table[2:])}
    assert computed["engine"] == 32 + 4 * 8
    assert computed["engine, prefix_sharing=False"] == 4 * 40
