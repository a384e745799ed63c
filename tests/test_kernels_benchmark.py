"""benchmarks/gpu.py: its dry run, what it says of a wrong kernel, what it counts, and what it says without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the dry run chooses the interpreter itself", allow_module_level=True)

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess:
    """gpu.py in a process of its own, after some code that may spoil it."""
    program = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import gpu\n{code}\ngpu.main({list(arguments)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=environment, timeout=280
    )


@pytest.fixture
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_dry_run_goes_through_every_section(tmp_path):
    done = run("--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for section in ("peaks", "kernels", "parity", "attention", "operators", "workloads", "generate_batch"):
        assert f"\n## {section}\n" in done.stdout
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == done.stdout
    data = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert data["failures"] == []
    assert {name.rsplit(", ", 1)[1] for name in data["results"]["workloads"]} >= {"transformers.generate", "engine"}
    assert all(error < 1e-2 for error in data["results"]["errors"].values())
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    for heading, rule in pairwise(tables):
        if rule.startswith("| ---"):
            assert heading.count("|") == rule.count("|")


def test_what_is_wrong_is_reported_and_the_rest_still_runs():
    spoil = """
import os; os.environ["TRITON_INTERPRET"] = "1"
import gpu_kernels, elementwise_cases, torch
one = elementwise_cases.CASES["silu"]
elementwise_cases.CASES = {
    "half off": lambda *a: [(out + 0.5, wanted) for out, wanted in one(*a)],
    "not a number": lambda *a: [(out * float("nan"), wanted) for out, wanted in one(*a)],
    "silu": one,
}
def stop(*_): raise RuntimeError("no such kernel image")
gpu_kernels.time_attention = stop
"""
    done = run("--dry-run", "--only", "kernels,attention,operators", code=spoil)
    assert done.returncode == 1
    assert "3 things were wrong" in done.stderr
    assert "half off in torch.float16: error 5" in done.stderr
    assert "not a number in torch.float16: error nan" in done.stderr
    assert "section attention stopped" in done.stdout
    assert "no such kernel image" in done.stdout
    assert "| silu | float16 | 1 |" in done.stdout
    assert "| SiLU and product |" in done.stdout


def test_counts_of_the_attention_workloads(on_path):
    import gpu_kernels

    work, shape = gpu_kernels.Workload("w", 10, [(4, 1), (3, 3)]), gpu_kernels.Shape(4, 2, 8)
    token = 2 * 2 * 8 * 2
    assert gpu_kernels.kv_bytes(work, shape, torch.float16) == (27 * token, 17 * token)
    assert gpu_kernels.flops(work, shape) == 4 * 4 * 8 * (14 + 11 + 12 + 13)


def test_prompts_of_a_tree_share_what_they_should(on_path):
    import gpu_workloads

    rows = gpu_workloads.tree(50, [(2, 10), (3, 5)])
    assert {len(row) for row in rows} == {15}
    shared = [next(i for i in range(15) if a[i] != b[i]) for a in rows for b in rows if a is not b]
    assert sorted(set(shared)) == [0, 10]
    for work in gpu_workloads.workloads(500, dry_run=False):
        assert len(work.prompts) == 64
        assert len({len(prompt) for prompt in work.prompts}) == 1
        assert len({tuple(prompt) for prompt in work.prompts}) == 64


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run()
    assert done.returncode == 1
    assert "No CUDA device: nothing was measured" in done.stderr
