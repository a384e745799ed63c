from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, dict]:
    """Workload -> run -> its cells by column, of the benchmark in small."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARKS / "engine.py"))["main"](["--quick", "--threads", str(threads), *arguments])
    finally:
        torch.set_num_threads(threads)
    found: dict[str, dict] = {}
    for part in capsys.readouterr().out.split("\n### ")[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        header = rows[0]
        found[part.split(":")[0]] = {row[0]: dict(zip(header, row)) for row in rows[2:]}
    return found


def test_the_benchmark_runs_in_small(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = tables(capsys, monkeypatch, "--baselines", "generate")
    assert list(found) == ["shared", "groups", "deep", "none", "long", "choices", "json"]
    computed = {name: int(cells["prompt tokens computed"] or 0) for name, cells in found["shared"].items()}
    assert computed["transformers.generate"] == 0
    assert computed["engine"] == computed["engine, cascade=False"] == 32 + 4 * 8
    assert computed["engine, prefix_sharing=False"] == 4 * 40
    assert computed["engine, second batch, prefix_cache=True"] == 4
    assert computed["engine, second batch, prefix_cache=False"] == 32 + 4 * 8
    assert found["deep"]["engine"]["prompt tokens computed"] == str(16 + 2 * 8 + 4 * 8)
    assert "engine, choice" in found["choices"]
    steps = {name: int(cells["steps"]) for name, cells in found["json"].items()}
    assert steps["engine, json"] < steps["engine, forced_tokens=False"]


def test_a_peer_runs_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "vllm.py").write_text(
        "__version__ = '0 (a stand-in)'\n"
        "class SamplingParams:\n"
        "    def __init__(self, **settings): self.count = settings['max_tokens']\n"
        "class Output:\n"
        "    def __init__(self, count): self.outputs = [self]; self.token_ids = [7] * count\n"
        "class LLM:\n"
        "    def __init__(self, model, **settings): assert settings['dtype'] == 'float32'\n"
        "    def generate(self, prompts, settings, use_tqdm): return [Output(settings.count) for _ in prompts]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    arguments = ["--workloads", "groups", "--no-switches", "--peer", f"vllm={sys.executable}"]
    found = tables(capsys, monkeypatch, *arguments)["groups"]
    assert list(found) == ["transformers.generate", "vllm 0 (a stand-in)", "engine"]
    found = tables(capsys, monkeypatch, *arguments[:-1], f"openvino={sys.executable}")["groups"]
    assert any(re.match("openvino: failed: ModuleNotFoundError", name) for name in found)


def test_what_all_prompts_begin_with() -> None:
    common_prefix = runpy.run_path(str(BENCHMARKS / "engine_peers.py"))["common_prefix"]
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5, 6]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 1, "a token is left to compute"
    assert common_prefix([[1], [2]]) == 0


def test_workloads_share_what_they_say() -> None:
    names = runpy.run_path(str(BENCHMARKS / "engine_workloads.py"))
    for workload in names["WORKLOADS"].values():
        prompts = workload.prompts(3)
        assert len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}) == (
            workload.distinct_tokens
        )
        assert len({len(prompt) for prompt in prompts}) == 1
        assert max(max(prompt) for prompt in prompts) < 2048
        assert workload.prompts(0)[0][0] != prompts[0][0], "other seeds share nothing"
        assert json.loads(json.dumps(prompts)) == prompts
