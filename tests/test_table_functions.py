"""The functions without SQL: the kind of table that came in, and the answers that SQL gives."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

import llmsql
from llmsql.testing import FakeModel

ROWS = {
    "title": ["hose", "pot", None, "hose", "lamp"],
    "stars": [5, 1, None, 5, 3],
    "text": ["good", "bad", None, "good", None],
}
TABLE = pa.table(ROWS)


def echo(prompt: str, fields: dict, options: dict) -> str:
    if options["function"] == "llm_filter":
        return "Yes" if "hose" in str(fields) else "No"
    if options["function"] == "llm_score":
        return str(len(str(fields)) % 10)
    if options["function"] == "llm_extract":
        return '{"kind": "' + str(fields.get("title")) + '", "n": 3}'
    if "choices" in options:
        return options["choices"][sum(map(ord, str(sorted(fields.items())))) % len(options["choices"])]
    if options.get("return_type") == "INTEGER":
        return str(len(fields))
    return f"{prompt}: {sorted(fields.items())}"


MODEL = FakeModel(echo)


def polars():
    return pytest.importorskip("polars", reason="polars is not installed")


def sql(text: str, table: pa.Table = TABLE) -> list:
    with llmsql.connect(model=FakeModel(echo)) as con:
        return con.execute(text).fetchall()


KINDS = {
    "table": (lambda: TABLE, lambda made: made),
    "batch": (lambda: TABLE.to_batches()[0], lambda made: pa.Table.from_batches([made])),
    "reader": (
        lambda: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(2)),
        lambda made: made.read_all(),
    ),
    "pandas": (
        lambda: pd.DataFrame({**ROWS, "stars": pd.array(ROWS["stars"], dtype="Int64")}, index=list("vwxyz")),
        lambda made: pa.Table.from_pandas(made, preserve_index=False),
    ),
    "polars": (lambda: polars().DataFrame(ROWS), lambda made: made.to_arrow()),
    "lazy": (lambda: polars().LazyFrame(ROWS), lambda made: made.collect().to_arrow()),
    "relation": (lambda: duckdb.from_arrow(TABLE), lambda made: made.to_arrow_table()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_stays(kind: str) -> None:
    make, to_arrow = KINDS[kind]
    given = make()
    made = llmsql.llm(given, "Say", ["title", "stars"], model=MODEL)
    assert type(made) is type(given)
    table = to_arrow(made)
    assert table.column_names == ["title", "stars", "text", "llm"]
    expected = sql("SELECT title, stars, text, llm('Say', title, stars) FROM table")
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    kept = to_arrow(llmsql.llm_filter(make(), "Good?", columns=["title", "text"], model=MODEL))
    expected = sql("SELECT * FROM table WHERE llm_filter('Good?', title, text)")
    assert [tuple(row.values()) for row in kept.to_pylist()] == expected
    assert 0 < len(expected) < 5


def test_a_pandas_frame_keeps_index_and_types() -> None:
    frame = pd.DataFrame(ROWS, index=list("vwxyz"))
    made = llmsql.llm_filter(frame, "Good?", ["title"], column="yes", model=MODEL)
    assert list(made.index) == list("vwxyz")
    assert made["yes"].tolist()[2] is None
    assert "yes" not in frame.columns
    pd.testing.assert_frame_equal(made[list(ROWS)], frame)
    numbers = llmsql.llm(frame, "How many?", return_type="INTEGER", column="n", model=MODEL)["n"]
    assert numbers.tolist()[0] == 3


def test_all_functions_answer_as_in_sql() -> None:
    pairs = [
        (llmsql.llm(TABLE, "About {title}", ["title", "text"], model=MODEL), "llm('About {title}', title, text)"),
        (
            llmsql.llm_classify(TABLE, "Which?", ["a", "b"], "title", model=MODEL),
            "llm_classify('Which?', ['a', 'b'], title)",
        ),
        (llmsql.llm_score(TABLE, "How?", "title", max=9, model=MODEL), "llm_score('How?', title, max := 9)"),
        (
            llmsql.llm_extract(TABLE, "What?", "STRUCT(kind VARCHAR, n INTEGER)", "title", model=MODEL),
            "llm_extract('What?', 'STRUCT(kind VARCHAR, n INTEGER)', title)",
        ),
        (
            llmsql.llm(TABLE, "N?", return_type="INTEGER", model=MODEL),
            "llm('N?', title, stars, text, return_type := 'INTEGER')",
        ),
    ]
    for made, call in pairs:
        assert made.column(3).to_pylist() == [value for (value,) in sql(f"SELECT {call} FROM table")], call


@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind: str) -> None:
    make, to_arrow = KINDS[kind]

    def joined(prompt: str, fields: dict, options: dict) -> str:
        ((name, rows),) = fields.items()
        return f"{name}: {rows}"

    model = FakeModel(joined)
    with llmsql.connect(model=model) as con:
        whole = con.execute("SELECT llm_agg('Sum', text) FROM TABLE").fetchone()[0]
        grouped = dict(con.execute("SELECT title, llm_agg('Sum', stars, text) FROM TABLE GROUP BY title").fetchall())
    assert llmsql.llm_agg(make(), "Sum", "text", model=model) == whole
    given = make()
    made = llmsql.llm_agg(given, "Sum", by="title", model=model)
    assert type(made) is type(given)
    rows = to_arrow(made).to_pylist()
    assert [row["title"] for row in rows] == ["hose", "pot", None, "lamp"]
    assert {row["title"]: row["llm_agg"] for row in rows} == grouped
    assert llmsql.llm_agg(TABLE.slice(0, 0), "Sum", "text", model=model) is None


def test_equal_rows_are_asked_once_and_counted() -> None:
    model = FakeModel(echo)
    told = llmsql.QueryStatistics()
    llmsql.llm(TABLE, "Say", model=model, statistics=told, batch_rows=2)
    assert model.calls == told.model_calls == 3
    (stage,) = told.stages
    assert (stage.rows, stage.distinct) == (5, 4)
    llmsql.llm(TABLE, "Say", model=model, deduplicate=False)
    assert model.calls == 3 + 4, "a row without any value is not asked"


def test_a_reader_is_answered_as_it_is_read() -> None:
    model = FakeModel(echo)

    def endless():
        number = 0
        while True:
            yield pa.record_batch({"n": list(range(number, number + 10))})
            number += 10

    reader = pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), endless())
    made = llmsql.llm(reader, "Say", model=model, batch_rows=20, column="said")
    assert model.calls == 0
    assert made.read_next_batch().to_pylist()[3] == {"n": 3, "said": "Say: [('n', 3)]"}
    assert model.calls == 20


def test_the_model_of_a_stream_that_is_not_read_is_given_back() -> None:
    from llmsql import models, table_functions

    def reader() -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches())

    made = llmsql.llm(reader(), "Say", model="demo", cache=False)  # loads no weights: nothing is asked
    assert [users for _, users in models._open.values()] == [2], "one call's, and one kept for the next call"
    del made
    with pytest.raises(llmsql.CallError, match="no column 'nope'"):
        llmsql.llm(reader(), "Say", "nope", model="demo", cache=False)
    assert [users for _, users in models._open.values()] == [1]
    table_functions._kept.keep(None)
    assert models._open == {}


def test_failures_budgets_and_the_cache(tmp_path: Path) -> None:
    def fails(prompt: str, fields: dict, options: dict) -> str:
        if fields["title"] == "pot":
            raise ValueError("no pots")
        return "fine"

    model, told = FakeModel(fails, fingerprint=b"pots"), llmsql.QueryStatistics()
    with pytest.warns(llmsql.LlmsqlWarning, match=r"1 of 3 rows"):
        made = llmsql.llm(TABLE, "Say", "title", model=model, statistics=told, cache=tmp_path / "kept.sqlite")
    assert made.column("llm").to_pylist() == ["fine", None, None, "fine", "fine"]
    assert told.errors[0].values == {"title": "pot"}
    with pytest.raises(llmsql.RowError, match="no pots"):
        llmsql.llm(TABLE, "Say", "title", model=model, on_error="fail", cache=tmp_path / "kept.sqlite")
    assert model.calls == 4, "two answers were kept"
    with pytest.raises(llmsql.BudgetError, match="max_rows"):
        llmsql.llm(TABLE, "Sing", "title", model=model, max_rows=2)


def test_a_session_lends_its_model_and_cache() -> None:
    with llmsql.connect(model=FakeModel(echo), cache=":memory:") as con:
        con.add_model("loud", FakeModel(lambda prompt, fields, options: "LOUD"))
        con.sql("SELECT llm('Say', title) FROM TABLE")
        made = llmsql.llm(TABLE, "Say", "title", session=con)
        assert (con.last_query.model_calls, con.last_query.cached) == (0, 3)
        assert made.column("llm").to_pylist()[0] == "Say: [('title', 'hose')]"
        loud = llmsql.llm(con.sql("SELECT 1 AS n"), "Say", session=con, **{"model": None})
        assert loud.fetchall() == [(1, "Say: [('n', 1)]")]
        with pytest.raises(llmsql.SettingError, match="not both"):
            llmsql.llm(TABLE, "Say", session=con, model="demo")
    with pytest.raises(llmsql.ClosedError):
        llmsql.llm(TABLE, "Say", session=con)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((TABLE, "Say", ["nope"]), {}, llmsql.CallError, "no column 'nope'; its columns are: title, stars, text"),
        ((TABLE, "Say", []), {}, llmsql.CallError, "no column to ask about"),
        ((TABLE, ""), {}, llmsql.CallError, "prompt must be a text"),
        ((TABLE, "Say"), {"colour": 1}, llmsql.CallError, "llm has no option 'colour'; its options are: choices, "),
        ((TABLE, "Say"), {"retun_type": "DATE"}, llmsql.CallError, "did you mean 'return_type'"),
        ((TABLE, "Say"), {"batch_row": 1}, llmsql.CallError, "did you mean 'batch_rows'.*settings of llmsql.connect"),
        ((TABLE, "Say"), {"max_tokens": -1}, llmsql.CallError, "'max_tokens'"),
        ((TABLE, "About {nobody}"), {}, llmsql.CallError, "no such field"),
        (([1, 2], "Say"), {}, llmsql.SettingError, "a pandas or polars frame"),
    ],
)
def test_mistakes(arguments: tuple, options: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        llmsql.llm(*arguments, model=MODEL, **options)


def test_no_rows() -> None:
    made = llmsql.llm_score(TABLE.slice(0, 0), "How?", model=MODEL)
    assert made.num_rows == 0
    assert made.schema.field("llm_score").type == pa.float64()
    assert llmsql.llm_filter(pd.DataFrame({"x": []}), "Good?", model=MODEL).shape == (0, 1)


def test_the_engine_answers_and_stays_loaded() -> None:
    pytest.importorskip("torch")
    from llmsql import table_functions

    reviews = pa.table({"text": ["Great, I love it.", "Terrible, it broke.", "Great, I love it."]})
    told = llmsql.QueryStatistics()
    kept = llmsql.llm_filter(reviews, "Is the review positive?", cache=False, statistics=told)
    assert kept.column("text").to_pylist() == ["Great, I love it."] * 2
    assert told.prompt_tokens > 0
    engine = table_functions._kept.model._engine
    assert engine is not None
    llmsql.llm_filter(reviews, "Is the review negative?", cache=False)
    assert table_functions._kept.model._engine is engine
    table_functions._kept.keep(None)
    assert table_functions._kept.model is None
