from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from llmsql.gpu_backend.kernel_choice import why_not_native

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "attention.py"


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_the_benchmark_runs_in_small(kernels: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kernels == "native" and why_not_native():
        pytest.skip(f"no C++ kernels: {why_not_native()}")
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARK))["main"](["--quick", "--seconds", "0.01", "--kernels", kernels])
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| 23 M")]) == 4
    assert "READ_NS " in lines[-1]


def test_the_fit_finds_the_constants() -> None:
    names = runpy.run_path(str(BENCHMARK))
    constants = np.array([0.1, 40_000, 3_000, 0.5])
    rows = [
        names["terms"](shape, torch.float32, rows, keys, native=False)
        for shape in names["SHAPES"].values()
        for rows in (2, 8, 64)
        for keys in (16, 64, 256)
    ]
    found = names["fit"]([(row, float(np.dot(row, constants))) for row in rows])
    assert np.allclose(list(found.values()), constants)
    noisy = [(row, float(np.dot(row, [0.1, 40_000, 0, 0])) * (0.9 + 0.2 * (i % 2))) for i, row in enumerate(rows)]
    assert min(names["fit"](noisy).values()) >= 0
