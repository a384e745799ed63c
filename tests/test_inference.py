"""The type of an llm call that declares none: what the SQL around it says is what the model is asked for."""

from __future__ import annotations

import datetime

import duckdb
import pytest

import llmsql
from llmsql.testing import FakeModel

SETUP = """
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TABLE t AS SELECT * FROM (VALUES (1, 'a', 2.5::DECIMAL(5, 1), DATE '2020-01-02', 'glad'::mood, true),
        (2, 'b', 1.5, DATE '2021-01-02', 'sad'::mood, false)) v(k, s, d, day, m, yes);
    CREATE TABLE target (id BIGINT, n SMALLINT, s VARCHAR, m mood, p STRUCT(a INTEGER, b VARCHAR), day DATE);
"""


class Asked:
    """A model that notes what types it is asked for."""

    def __init__(self):
        self.kinds: list[object] = []

    def __call__(self, prompt, fields, options):
        kind = options.get("return_type")
        choices = options.get("choices")
        shown = kind if kind and kind != "VARCHAR" else tuple(choices) if choices else "text"
        if shown not in self.kinds:
            self.kinds.append(shown)
        if choices:
            return choices[0]
        if "schema" in options:
            return '{"a": 1, "b": "x"}'
        return {"DATE": "2020-06-01", "TIMESTAMP": "2020-06-01 00:00:00", "DOUBLE": "2.0", "text": "4"}.get(shown, "4")


@pytest.fixture(scope="module")
def asked():
    return Asked()


@pytest.fixture(scope="module")
def con(asked):
    with llmsql.connect(model=FakeModel(asked)) as session:
        session.execute(SETUP)
        yield session


def kinds_of(con, asked, sql, parameters=None):
    asked.kinds = []
    con.execute(sql, parameters)
    return asked.kinds


Q = "llm('Q', s)"
YES = ("Yes", "No")


@pytest.mark.parametrize(
    ("sql", "kinds"),
    [
        (f"SELECT CAST({Q} AS INTEGER) FROM t", ["INTEGER"]),
        (f"SELECT {Q}::DATE FROM t", ["DATE"]),
        (f"SELECT TRY_CAST({Q} AS DOUBLE) FROM t", ["DOUBLE"]),
        (f"SELECT {Q}::DECIMAL(5, 2) FROM t", ["DECIMAL(5, 2)"]),
        (f"SELECT {Q}::VARCHAR FROM t", ["text"]),
        (f"SELECT CAST({Q} AS STRUCT(a INTEGER, b VARCHAR)).a FROM t", ["STRUCT(a INTEGER, b VARCHAR)"]),
        (f"SELECT {Q}::JSON FROM t", ["text"]),
        (f"SELECT {Q} > 3 FROM t", ["BIGINT"]),
        (f"SELECT -3 <= ({Q}) FROM t", ["BIGINT"]),
        (f"SELECT {Q} < 3.5 FROM t", ["DOUBLE"]),
        (f"SELECT {Q} BETWEEN 1 AND 2.5 FROM t", ["DOUBLE"]),
        (f"SELECT {Q} IN (1, 2) FROM t", ["BIGINT"]),
        (f"SELECT {Q} = true FROM t", ["BOOLEAN"]),
        (f"SELECT {Q} IS TRUE FROM t", ["BOOLEAN"]),
        (f"SELECT {Q} > DATE '2020-01-01' FROM t", ["DATE"]),
        (f"SELECT {Q} > k FROM t", ["BIGINT"]),
        (f"SELECT {Q} > t.d FROM t", ["DOUBLE"]),
        (f"SELECT {Q} = day FROM t", ["DATE"]),
        (f"SELECT {Q} = s FROM t", ["text"]),
        (f"SELECT {Q} = m FROM t", [("glad", "sad")]),
        (f"SELECT {Q} = llm_score('How?', s) FROM t", [tuple(map(str, range(11))), "DOUBLE"]),
        (f"SELECT s FROM t WHERE {Q}", ["BOOLEAN"]),
        (f"SELECT s FROM t WHERE {Q} AND k > 0", ["BOOLEAN"]),
        (f"SELECT s FROM t WHERE NOT {Q} OR k > 5", ["BOOLEAN"]),
        (f"SELECT CASE WHEN {Q} THEN 1 END FROM t", ["BOOLEAN"]),
        (f"SELECT count(*) FILTER (WHERE {Q}) FROM t", ["BOOLEAN"]),
        ("SELECT a.s FROM t a JOIN t b ON llm('Q', a.s, b.s)", ["BOOLEAN"]),
        (f"SELECT k FROM t GROUP BY k, s HAVING {Q}", ["BOOLEAN"]),
        (f"SELECT sum({Q}), avg({Q}) FROM t", ["DOUBLE"]),
        (f"SELECT {Q} = 'Yes' FROM t", [YES]),
        (f"SELECT {Q} <> 'no' FROM t", [("yes", "no")]),
        (f"SELECT {Q} = 'TRUE' FROM t", [("TRUE", "FALSE")]),
        (f"SELECT s FROM t WHERE {Q} IN ('a', 'b')", [("a", "b", "other")]),
        (f"SELECT s FROM t WHERE {Q} = 'a' OR {Q} = 'Other'", [("a", "Other")]),
        (f"SELECT CASE {Q} WHEN 'x' THEN 1 WHEN 'y' THEN 2 ELSE 3 END FROM t", [("x", "y", "other")]),
        (f"SELECT CASE WHEN {Q} = 'x' THEN 1 WHEN {Q} = 'y' THEN 2 END FROM t", [("x", "y", "other")]),
        (f"SELECT s FROM t WHERE {Q} IS NOT NULL AND {Q} = 'a'", [("a", "other")]),
        (f"SELECT {Q} FROM t WHERE {Q} <> 'spam'", ["text"]),
        (f"SELECT {Q} AS a FROM t WHERE a <> 'spam'", ["text"]),
        (f"SELECT {Q} = '' FROM t", ["text"]),
        (f"SELECT {Q} LIKE 'a%', {Q} > 'b' FROM t", ["text"]),
        (f"SELECT {Q} FROM t WHERE {Q} IS NOT NULL ORDER BY {Q}", ["text"]),
        (f"SELECT {Q} AS n FROM t WHERE n > 3 ORDER BY n", ["BIGINT"]),
        (f"SELECT {Q}::SMALLINT FROM t WHERE {Q} > 3", ["SMALLINT"]),
        (f"SELECT upper({Q}), {Q} > 3 FROM t", ["BIGINT"]),
        (f"SELECT {Q}::DATE, {Q}::INTEGER FROM t", ["DATE", "INTEGER"]),
        (f"INSERT INTO target (s, n) SELECT {Q}, {Q} FROM t", ["SMALLINT"]),
        (f"INSERT INTO target (n) SELECT {Q} FROM t UNION ALL SELECT k FROM t", ["SMALLINT"]),
        (f"INSERT INTO target BY NAME SELECT {Q} AS day FROM t", ["DATE"]),
        (f"INSERT INTO target SELECT k, {Q}, s, m, NULL, day FROM t", ["SMALLINT"]),
        (
            f"INSERT INTO target (p, m) SELECT {Q}, llm('M', s) FROM t",
            ["STRUCT(a INTEGER, b VARCHAR)", ("glad", "sad")],
        ),
        ("INSERT INTO target (n) VALUES (llm('Q', 'x'))", ["SMALLINT"]),
        ("UPDATE target SET n = llm('Q', s), s = llm('S', s)", ["SMALLINT", "text"]),
        ("UPDATE target SET s = 'x' WHERE llm('Q', s)", ["BOOLEAN"]),
        ("DELETE FROM target WHERE llm('Q', s) > n", ["BIGINT"]),
        ("SELECT llm('Q', s, return_type := 'VARCHAR') = 'Yes' FROM t", ["text"]),
        ("SELECT llm('Q', s, choices := ['b', 'c']) = 'Yes' FROM t", [("b", "c")]),
        (f"WITH c AS (SELECT {Q} AS a FROM t) SELECT a FROM c WHERE a = 'Yes'", ["text"]),
        (f"SELECT s FROM (SELECT s, llm_filter('F', s) AS f FROM t) WHERE {Q} > 3 AND f", ["BIGINT", YES]),
    ],
)
def test_the_place_says_the_type(con, asked, sql, kinds):
    con.execute("DELETE FROM target")
    con.execute("INSERT INTO target (n, s) VALUES (1, 'x')")
    found = kinds_of(con, asked, sql)
    assert sorted(map(repr, found)) == sorted(repr("BOOLEAN" if kind == "BOOLEAN" else kind) for kind in kinds)


def test_parameters_count_as_what_they_are(con, asked):
    for value, kind in ((3, "BIGINT"), (2.5, "DOUBLE"), (datetime.date(2020, 1, 1), "DATE"), ("Yes", YES)):
        assert kinds_of(con, asked, f"SELECT {Q} = ? FROM t", [value]) == [kind]


def test_values_have_the_inferred_type(con):
    relation = con.sql(f"SELECT {Q} AS n, {Q} > 3 AS large, upper({Q}) AS shown FROM t")
    assert [str(kind) for kind in relation.types] == ["BIGINT", "BOOLEAN", "VARCHAR"]
    assert relation.fetchall() == [(4, True, "4"), (4, True, "4")]
    assert con.last_query.model_calls == 2


def test_names_do_not_show_what_was_inferred(con):
    assert con.sql(f"SELECT {Q} > 3, {Q} FROM t").columns == ["llm('Q', s) > 3", "llm('Q', s)"]


def test_explain_shows_the_type_and_why(con):
    plan = con.explain(f"SELECT s FROM t WHERE {Q} > 3")
    assert "ask llm('Q', s)\n" in plan
    assert "answer: BIGINT, because of llm('Q', s) > 3" in plan
    assert "answer: BOOLEAN, because of its place in WHERE" in con.explain(f"SELECT s FROM t WHERE {Q}")
    assert "answer: one of ['a', 'other'], because of llm('Q', s) = 'a'" in con.explain(f"SELECT {Q} = 'a' FROM t")
    assert "SMALLINT, because of column n, which is SMALLINT" in con.explain(
        f"INSERT INTO target (n) SELECT {Q} FROM t"
    )
    assert "answer:" not in con.explain(f"SELECT {Q} FROM t")


def test_in_a_transaction_as_outside(con, asked):
    con.execute("BEGIN")
    try:
        assert kinds_of(con, asked, f"SELECT {Q} > d FROM t") == ["DOUBLE"]
    finally:
        con.execute("ROLLBACK")


def test_it_can_be_switched_off(asked):
    with llmsql.connect(model=FakeModel(asked), infer_types=False) as con:
        con.execute(SETUP)
        assert kinds_of(con, asked, f"SELECT {Q} = 'Yes', {Q}::INTEGER FROM t") == ["text"]


def test_a_plain_connection_does_not_infer(asked):
    with duckdb.connect() as connection:
        registration = llmsql.register(connection, model=FakeModel(asked))
        connection.execute(SETUP)
        assert kinds_of(connection, asked, f"SELECT {Q} = 'Yes' FROM t") == ["text"]
        registration.remove()
