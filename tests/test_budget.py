"""Budgets stop a statement before it costs too much; errors and counters can be queried; models have names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import duckdb
import pytest

import llmsql
from llmsql.errors import BudgetError, ModelError, SettingError
from llmsql.statistics import StageStatistics
from llmsql.testing import FakeModel

ROWS = "FROM range(50) t(i)"


def word(prompt: str, fields: dict, options: dict) -> str:
    return f"word {fields['i']}"


def test_rows_are_counted_before_any_is_asked() -> None:
    model = FakeModel(word)
    with llmsql.connect(model=model, max_rows=49) as con:
        with pytest.raises(BudgetError, match=r"50 rows, and max_rows is 49"):
            con.sql(f"SELECT llm('Say', i) {ROWS}")
        assert model.calls == 0
        assert len(con.sql(f"SELECT llm('Say', i // 2) AS a {ROWS}".replace("i // 2", "i // 2 AS i")).fetchall()) == 50
        assert model.calls == 25


def test_all_calls_of_a_statement_share_the_budget(tmp_path: Path) -> None:
    model = FakeModel(word)
    with llmsql.connect(model=model, max_rows=80, cache=tmp_path / "answers.sqlite") as con:
        with pytest.raises(BudgetError, match=r"100 rows.*max_rows is 80.*the last 50"):
            con.sql(f"SELECT llm('Say', i), llm('Sing', i) {ROWS}")
        assert model.calls == 50
        con.sql(f"SELECT llm('Say', i), llm('Sing', i) {ROWS}")  # what was paid for is no cost any more
        assert (con.last_query.model_calls, con.last_query.cached) == (50, 50)


def test_seconds_stop_a_statement_and_keep_what_is_done(tmp_path: Path) -> None:
    def slow(prompt: str, fields: dict, options: dict) -> str:
        time.sleep(0.1)
        return "done"

    model = FakeModel(slow)
    with llmsql.connect(model=model, max_seconds=2.0, cache=tmp_path / "answers.sqlite") as con:
        with pytest.raises(BudgetError, match=r"max_seconds is 2"):
            con.sql(f"SELECT llm('Say', i) {ROWS}")
        assert model.calls < 50
        assert con.cache.info().answers == model.calls


def test_tokens_are_estimated_before_the_weights_are_loaded() -> None:
    with llmsql.connect(max_tokens=100) as con:
        with pytest.raises(BudgetError, match=r"50 prompts have [\d,]+ tokens.*max_tokens is 100"):
            con.sql(f"SELECT llm_filter('Is it good?', 'a hose of ' || i || ' metres' AS product) {ROWS}")
        assert con._models.own._engine is None
    with llmsql.connect(max_tokens=500) as con:
        con.sql("SELECT llm_filter('Is it good?', 'a hose' AS product)")
        tokens = con.last_query.computed_tokens + con.last_query.output_tokens
        assert 0 < tokens <= 500


@pytest.mark.parametrize(
    "setting", [{"max_rows": 0}, {"max_tokens": True}, {"max_seconds": -1}, {"max_seconds": "1 h"}], ids=str
)
def test_bad_budgets_are_named(setting: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(setting))):
        llmsql.connect(model=FakeModel(word), **setting)


def test_a_failed_rows_long_values_are_kept_by_their_beginning() -> None:
    statistics = StageStatistics("llm('x', a, b, c)")
    statistics.add_failure({"a": "y" * 10_000_000, "b": ["z" * 2000], "c": [1, None]}, "too long")
    (failure,) = statistics.failures
    assert failure.values["a"] == "y" * 1000 + "…"
    assert str(failure.values["b"]).startswith("['zzz")
    assert len(str(failure.values["b"])) == 1001
    assert failure.values["c"] == [1, None]


def test_llm_errors_lists_the_failed_rows() -> None:
    def fails(prompt: str, fields: dict, options: dict) -> str:
        if fields["i"] % 20 == 3:
            raise ValueError("no idea")
        return "fine"

    with llmsql.connect(model=FakeModel(fails)) as con:
        with pytest.warns(llmsql.LlmsqlWarning, match=r"3 of 50 rows.*llm_errors\(\)"):
            con.sql(f"SELECT llm('Say', i) {ROWS}")
        sql = "SELECT call, (row->>'i')::INT AS i, error FROM llm_errors() e WHERE e.error LIKE '%no idea%' ORDER BY i"
        listed = con.sql(sql).fetchall()
        assert [(i, error) for _, i, error in listed] == [(n, "ValueError: no idea") for n in (3, 23, 43)]
        assert con.execute("SELECT count(*) FROM LLM_ERRORS ( )").fetchone() == (3,)
        con.sql("SELECT llm('Say', i) FROM range(2) t(i)")
        assert con.sql("SELECT * FROM llm_errors()").fetchall() == []


def test_statistics_are_a_table() -> None:
    with llmsql.connect(model=FakeModel(word)) as con:
        con.sql(f"SELECT llm('Say', i), llm('Sing', i // 10 AS i) {ROWS}")
        counters = con.last_query.to_arrow()
        sql = 'SELECT rows, "distinct", asked, cached, failed FROM counters ORDER BY asked'
        with duckdb.connect() as other:
            rows = other.sql(sql).fetchall()
        assert rows == [(50, 5, 5, 0, 0), (50, 50, 50, 0, 0)]
        assert json.loads(json.dumps(counters.to_pylist()))


def test_models_have_names() -> None:
    loud, quiet = FakeModel(lambda p, f, o: "LOUD"), FakeModel(lambda p, f, o: "quiet")
    sql = "SELECT llm('Say', 1 AS i), llm('Say', 1 AS i, model := 'quiet')"
    with llmsql.connect(model=loud) as con:
        con.add_model("quiet", quiet)
        assert con.sql(sql).fetchall() == [("LOUD", "quiet")]
        with con.cursor() as other:
            assert other.sql(sql).fetchall() == [("LOUD", "quiet")]
        con.add_model("quiet", loud)
        assert con.sql(sql).fetchall() == [("LOUD", "LOUD")]
        with pytest.raises(SettingError, match="'model' must be"):
            con.add_model("other", 7)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="no such folder"):
            con.add_model("other", "/no/such/folder")
        with pytest.raises(SettingError, match="name"):
            con.add_model("", quiet)
