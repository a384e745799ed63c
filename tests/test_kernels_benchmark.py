"""benchmarks/gpu.py: its dry run, what it counts, and what it says without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmark_gpu", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_dry_run_prints_a_row_per_workload_and_type(gpu, capsys):
    gpu.main(["--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 2
    assert {line.count("|") for line in lines} == {10}
    assert [line.split(" | ")[3] for line in lines[2:]] == ["float16", "bfloat16"] * 2


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_a_wrong_kernel_is_reported(gpu, monkeypatch, wrong):
    reference = gpu.paged_attention_reference
    types = {torch.float16, torch.bfloat16}

    def spoiled(query, *rest, **options):
        return reference(query, *rest, **options) + wrong * (query.dtype in types)

    monkeypatch.setattr(gpu, "paged_attention_reference", spoiled)
    with pytest.raises(SystemExit, match="mixed in bfloat16: error"):
        gpu.main(["--dry-run"])


def test_counts(gpu):
    work, shape = gpu.Workload("w", 10, [(4, 1), (3, 3)]), gpu.Shape(4, 2, 8)
    token = 2 * 2 * 8 * 2
    assert gpu.kv_bytes(work, shape, torch.float16) == (27 * token, 17 * token)
    assert gpu.flops(work, shape) == 4 * 4 * 8 * (14 + 11 + 12 + 13)


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="No CUDA device: nothing was measured"):
        gpu.main([])
