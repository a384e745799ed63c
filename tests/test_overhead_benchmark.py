from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "overhead.py"


def test_the_benchmark_of_host_overhead_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARK))["main"](["--quick"])
    finally:
        torch.set_num_threads(threads)
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0]][2:] == ["schedule", "build batch", "commit", "read out", "whole step"]
    assert len(lines) == 2 + 5
    for cells in lines[2:]:
        assert int(cells[1]) == 8
        *parts, whole = map(int, cells[2:])
        assert 0 < sum(parts) <= 1.5 * whole  # medians do not add up exactly
