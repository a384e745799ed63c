"""Progress bars: one a stage, on terminals and in notebooks, alive while the engine runs. What is logged."""

from __future__ import annotations

import logging
import re
import sys
import time
import types
from typing import Any

import pytest

import llmsql
from llmsql.progress import Bar, TerminalCanvas
from llmsql.statistics import StageStatistics
from llmsql.testing import FakeModel

SECRET = "a cell nobody may read"


def choose(prompt: str, fields: dict, options: dict) -> str:
    if fields.get("i") == 7:
        raise ValueError(SECRET)
    return options["choices"][0] if "choices" in options else "word"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int, int]]]:
    """What the bars show, each time they are drawn."""
    seen: list[list[tuple[str, int, int]]] = []
    monkeypatch.setattr(TerminalCanvas, "__init__", lambda self: None)
    monkeypatch.setattr(
        TerminalCanvas, "draw", lambda self, bars: seen.append([(bar.label, bar.done, bar.total) for bar in bars])
    )
    monkeypatch.setattr(TerminalCanvas, "close", lambda self, bars: self.draw(bars))
    return seen


def test_one_bar_a_stage(drawn: list) -> None:
    sql = "SELECT llm('Say', i) FROM range(1500) t(i) WHERE llm_filter('a?', i) AND llm_filter('b?', i // 2)"
    with llmsql.connect(model=FakeModel(choose), progress=True) as con, pytest.warns(llmsql.LlmsqlWarning):
        con.sql(sql)
    last = drawn[-1]
    assert len(last) == 3, "predicates run in batches, and have one bar each"
    assert all(done == total for _, done, total in last)
    assert len({label for label, _, _ in last}) == 3
    first = [bars[0][1] for bars in drawn]
    assert first == sorted(first)


@pytest.mark.parametrize("wanted", [None, False])
def test_off_without_a_terminal(drawn: list, wanted: bool | None) -> None:
    with llmsql.connect(model=FakeModel(choose), progress=wanted) as con:
        con.sql("SELECT llm('Say', i) FROM range(5) t(i)")
    assert drawn == []


def test_on_with_a_terminal(drawn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with llmsql.connect(model=FakeModel(choose)) as con:
        con.sql("SELECT llm('Say', i) FROM range(5) t(i)")
        assert drawn[-1] == [("llm('Say', i)", 5, 5)]
        drawn.clear()
        con.dry_run("SELECT llm('Say', i) FROM range(5) t(i)")
    assert drawn == []


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, dict[str, Any]]] = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell = type("ZMQInteractiveShell", (), {})()
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = lambda data, **more: shown.append((data["text/plain"], more))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with llmsql.connect(model=FakeModel(choose)) as con:
        con.sql("SELECT llm('Say', i) FROM range(5) t(i)")
    assert not shown[0][1].get("update")
    assert all(more["update"] and more["display_id"] == shown[0][1]["display_id"] for _, more in shown[1:])
    assert "━ 5/5 rows" in shown[-1][0]
    ipython.get_ipython = lambda: type("TerminalInteractiveShell", (), {})()  # type: ignore[attr-defined]
    shown.clear()
    with llmsql.connect(model=FakeModel(choose)) as con:
        con.sql("SELECT llm('Say', i) FROM range(5) t(i)")
    assert shown == []


def test_the_terminal_is_as_before(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with llmsql.connect(model=FakeModel(choose), progress=True) as con:
        con.sql("SELECT llm('Say [bold]', i) FROM range(5) t(i)")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"llm\('Say \[bold\]', i\) .*5/5 rows", err)


def test_it_lives_while_the_engine_runs(drawn: list) -> None:
    pytest.importorskip("torch")
    with llmsql.connect(progress=True, cache=False) as con:
        con.sql("SELECT llm('Say', i, regex := '[a-z]{30}', max_tokens := 40) FROM range(3) t(i)")
        steps = con._models.own.engine.stats.steps
    assert len([1 for bars in drawn if bars[0][1] == 0]) >= min(steps, 10), "drawn in steps before any row is done"


def test_speed_counts_only_prompts_that_were_answered() -> None:
    counted = StageStatistics(prompt_tokens=1000, computed_tokens=50, output_tokens=20, asked=10, started=100)
    bar = Bar("call", counted, total=100, done=10, seconds=2.0)
    assert bar.speed() == "60 tok/s, 50% reused"
    assert bar.line() == "call ━━" + "─" * 22 + " 10/100 rows 60 tok/s, 50% reused ETA 18 s"
    assert Bar("call", StageStatistics(), total=10, since=time.perf_counter()).line().endswith("0/10 rows  ETA ?")


def test_cell_text_is_logged_for_debugging_only(caplog: pytest.LogCaptureFixture) -> None:
    sql = f"SELECT llm('Say', i, '{SECRET}' AS s) FROM range(9) t(i) WHERE llm_filter('a?', i) AND llm_filter('b?', i)"
    with caplog.at_level(logging.DEBUG, logger="llmsql"):
        with llmsql.connect(model=FakeModel(choose), cache=":memory:", max_rows=1000) as con:
            with pytest.warns(llmsql.LlmsqlWarning):
                con.sql(sql)
            with pytest.raises(llmsql.RowError):
                con.sql(sql.replace("'a?', i", "'a?', i, on_error := 'fail'"))
            with pytest.raises(llmsql.BudgetError):
                con.sql("SELECT llm('Say', i) FROM range(100000) t(i)")
    told = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert any(text.startswith("planned in") for text in told)
    assert any("stage llm_filter for WHERE: 9 rows, 9 distinct" in text for text in told)
    assert any("done in" in text for text in told)
    assert "stopped by BudgetError" in told
    assert SECRET not in "\n".join(told)
    assert any("result cache" in record.getMessage() for record in caplog.records)
    assert all(record.name.startswith("llmsql") for record in caplog.records)


def test_no_handlers_are_installed() -> None:
    assert logging.getLogger("llmsql").handlers == []
