"""Ctrl-C and `interrupt` stop a statement wherever it is; what is finished is kept, and the session goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from scratch_relations import scratch_relations

import llmsql
from llmsql.testing import FakeModel

ROWS = 200
CALL = f"SELECT llm('Say', i) AS said FROM range({ROWS}) t(i)"
LONG_READ = "(SELECT count(*) AS i FROM range(200000) a(i), range(200000) b(i) WHERE a.i * b.i % 7 = 3)"


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Shells let what they run in the background ignore SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is as it was"
    signal.signal(signal.SIGINT, before)


class Slow:
    """Answers after a while, and acts once a few answers are there."""

    def __init__(self, act: Callable[[], None], after: int = 10, seconds: float = 0.005):
        self.act = act
        self.after = after
        self.seconds = seconds
        self.calls = 0

    def __call__(self, prompt: str, fields: dict, options: dict) -> str:
        self.calls += 1
        if self.calls == self.after:
            threading.Thread(target=self.act).start()
        time.sleep(self.seconds)
        return options["choices"][0] if "choices" in options else f"word {fields['i']}"


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
@pytest.mark.parametrize("plan", [True, False], ids=["staged", "in place"])
def test_a_running_model_is_stopped(how: str, plan: bool, tmp_path: Path) -> None:
    stop = ctrl_c if how == "ctrl-c" else lambda: con.interrupt()
    fn = Slow(stop)
    with llmsql.connect(model=FakeModel(fn, fingerprint=b"slow"), cache=tmp_path / "kept.sqlite", plan=plan) as con:
        with pytest.raises(KeyboardInterrupt if how == "ctrl-c" else llmsql.InterruptError) as caught:
            con.sql(CALL)
        if how == "interrupt":
            assert isinstance(caught.value, duckdb.InterruptException)
        asked = fn.calls
        assert 10 <= asked < ROWS, "it stopped before all rows were done"
        if not (how == "ctrl-c" and not plan):  # it may hit the function itself, whose row then fails
            assert f"after {con.last_query.model_calls:,} rows" in str(caught.value)
        kept = con.cache.info().answers
        assert asked - 1 <= kept <= asked, "what is finished is kept"
        assert scratch_relations(con) == []
        assert len(con.sql(CALL).fetchall()) == ROWS
        assert fn.calls - asked == ROWS - kept, "and not asked again"


def test_an_interrupt_says_how_far_it_came() -> None:
    fn = Slow(lambda: con.interrupt())
    with llmsql.connect(model=FakeModel(fn)) as con:
        told = rf"after \d+ rows \(\d+ of {ROWS} for llm\('Say', i\)\); .*not"
        with pytest.raises(llmsql.InterruptError, match=told):
            con.sql(CALL)
        assert con.last_query.model_calls == fn.calls


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
@pytest.mark.parametrize("place", ["stage", "final"])
def test_reading_is_stopped(how: str, place: str) -> None:
    with llmsql.connect(model=FakeModel(lambda prompt, fields, options: "word")) as con:
        if place == "stage":
            sql = f"SELECT llm('Say', i) AS said FROM {LONG_READ}"
        else:
            sql = f"SELECT llm('Say', 1 AS i) AS said, q.i FROM {LONG_READ} q"
        threading.Timer(0.5, ctrl_c if how == "ctrl-c" else con.interrupt).start()
        with pytest.raises(KeyboardInterrupt if how == "ctrl-c" else llmsql.InterruptError):
            con.sql(sql)
        assert scratch_relations(con) == []
        assert con.sql("SELECT llm('Say', 1 AS i)").fetchall() == [("word",)]


def test_an_interrupt_that_meets_nothing_is_forgotten() -> None:
    with llmsql.connect(model=FakeModel(lambda prompt, fields, options: "word")) as con:
        con.interrupt()
        assert con.sql("SELECT llm('Say', 1 AS i)").fetchall() == [("word",)]
        assert con.sql("SELECT 1").fetchall() == [(1,)]
    with pytest.raises(llmsql.ClosedError):
        con.interrupt()


def test_a_statement_without_calls_is_interrupted_by_duckdb() -> None:
    with llmsql.connect(model=FakeModel(lambda prompt, fields, options: "word")) as con:
        threading.Timer(0.3, con.interrupt).start()
        with pytest.raises(duckdb.InterruptException):
            con.execute(f"FROM {LONG_READ}").fetchall()


def test_the_users_transaction_lives_on() -> None:
    with llmsql.connect(model=FakeModel(Slow(lambda: con.interrupt()))) as con:
        con.execute("BEGIN")
        con.execute("CREATE TEMP TABLE mine AS SELECT 7 AS n")
        with pytest.raises(llmsql.InterruptError):
            con.sql(CALL)
        assert con.execute("SELECT n FROM mine").fetchall() == [(7,)]
        assert scratch_relations(con) == []
        con.execute("COMMIT")
        assert con.execute("SELECT n FROM mine").fetchall() == [(7,)]


def test_a_handler_of_the_users_own_is_kept() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with llmsql.connect(model=FakeModel(Slow(ctrl_c, seconds=0.001))) as con:
            assert len(con.sql(CALL).fetchall()) == ROWS
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_sessions_go_on() -> None:
    with llmsql.connect(model=FakeModel(Slow(lambda: mine.interrupt()))) as con, con.cursor() as mine:
        rows: list[tuple[str]] = []
        other = threading.Thread(target=lambda: rows.extend(con.sql(CALL).fetchall()))
        other.start()
        with pytest.raises(llmsql.InterruptError):
            mine.sql(CALL.replace("Say", "Sing") + f" WHERE i < {ROWS}")
        other.join(60)
        assert len(rows) == ROWS


REVIEWS = """(SELECT 'Garden hose no. ' || i AS title, 'It broke after ' || i || ' days, never again. ' AS text
    FROM range(1500) t(i))"""


@pytest.mark.parametrize(
    ("how", "call"),
    [
        ("interrupt", "llm_filter('Is it positive?', title, text)"),
        ("interrupt", "llm('Summarise', title, text, max_tokens := 40)"),
        ("ctrl-c", "llm('Summarise', title, text, max_tokens := 40)"),
    ],
)
def test_the_engine_is_stopped_between_two_steps(how: str, call: str) -> None:
    sql = f"SELECT {call} AS answer FROM {REVIEWS}"
    pytest.importorskip("torch")
    with llmsql.connect(max_batch_tokens=256) as con:
        con.sql("SELECT llm_filter('Is it positive?', 'Great' AS text)")  # the weights are loaded
        engine = con._models.own.engine
        before = engine.stats.steps

        def stop() -> None:
            while engine.stats.steps < before + 8:
                time.sleep(0.01)
            (ctrl_c if how == "ctrl-c" else con.interrupt)()

        threading.Thread(target=stop).start()
        with pytest.raises(KeyboardInterrupt if how == "ctrl-c" else llmsql.InterruptError) as caught:
            con.sql(sql)
        done = con.last_query.model_calls
        assert done < 1500
        assert f"after {done:,} rows" in str(caught.value)
        engine.check()
        assert con.cache.info().answers >= done
        assert scratch_relations(con) == []
        assert con.sql("SELECT llm_filter('Is it positive?', 'Great, I love it.' AS text)").fetchall() == [(True,)]
        engine.check()


def test_seconds_are_watched_within_a_long_answer() -> None:
    """No answer comes before the time is up: the budget is looked at in every step of the engine."""
    pytest.importorskip("torch")
    with llmsql.connect(cache=False) as loader:
        loader.sql("SELECT llm_filter('Is it positive?', 'Great' AS text)")  # keeps the weights loaded
        with llmsql.connect(cache=False, max_seconds=0.3) as con:
            with pytest.raises(llmsql.BudgetError, match=r"max_seconds is 0\.3"):
                con.sql("""
                    SELECT llm('Summarise', i, regex := '[a-z]{4000}', max_tokens := 4000) AS a FROM range(20) t(i)
                """)
            con._models.own.engine.check()
