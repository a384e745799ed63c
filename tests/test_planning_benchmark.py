from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "planning.py"


def test_the_benchmark_of_planning_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(BENCHMARK))
    module["main"](["--quick"])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    asked = {cells[0]: cells[1] for cells in rows}
    assert {name: asked[name] for name in module["STATEMENTS"]} == {
        **dict.fromkeys(module["STATEMENTS"], "50"),
        "SELECT and WHERE": "100",
    }
    assert (asked["first"], asked["second"]) == ("200", "0")
    assert float(asked["10 tables"]) > 0
