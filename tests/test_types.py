"""Typed answers: what a type asks of the model, which texts are values of it, and where calls say what is wrong."""

from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest

import llmsql
from llmsql.answers import arrow_type, parse_answer
from llmsql.errors import CallError
from llmsql.functions import Call, make_call
from llmsql.testing import FakeModel
from llmsql.types import parse_type, schema_type

PERSON = "STRUCT(name VARCHAR, age INTEGER, born DATE, tags VARCHAR[], friend STRUCT(name VARCHAR))"


@pytest.mark.parametrize(
    "sql",
    [
        *("BOOLEAN", "TINYINT", "INTEGER", "BIGINT", "UBIGINT", "DOUBLE", "FLOAT", "DECIMAL(9,2)", "VARCHAR", "DATE"),
        *("TIME", "TIMESTAMP", "INTEGER[]", "STRUCT(a INTEGER, b DOUBLE[])", "VARCHAR[][]"),
        'STRUCT(a STRUCT(b VARCHAR, "C d" DATE)[])',
    ],
)
def test_types_are_those_of_duckdb(sql: str) -> None:
    declared = parse_type(sql.lower().replace('"c d"', '"C d"'))
    arrow = duckdb.sql(f"SELECT CAST(NULL AS {sql}) AS x").to_arrow_table().schema.field(0).type
    shown = duckdb.sql(f"SELECT CAST(NULL AS {declared.sql}) AS x").types[0]
    assert shown == duckdb.sql(f"SELECT CAST(NULL AS {sql}) AS x").types[0]
    if not pa.types.is_nested(arrow):  # DuckDB calls the members of a list otherwise
        assert declared.arrow == arrow
    json.dumps(declared.json_schema())


@pytest.mark.parametrize("sql", ["", "nonsense", "BLOB", "INTEGER, VARCHAR", "MAP(INTEGER, INTEGER)", "STRUCT()", "1"])
def test_what_is_no_type_for_answers(sql: str) -> None:
    with pytest.raises(CallError):
        parse_type(sql)


@pytest.mark.parametrize(
    ("sql", "text", "value"),
    [
        ("INTEGER", " 42\n", 42),
        ("TINYINT", "-128", -128),
        ("DOUBLE", "-0.5", -0.5),
        ("DECIMAL(6,2)", "12.345", Decimal("12.34")),
        ("BOOLEAN", "Yes.", True),
        ("BOOLEAN", "false", False),
        ("DATE", "2024-02-29", datetime.date(2024, 2, 29)),
        ("TIMESTAMP", "2024-02-29 12:30:00", datetime.datetime(2024, 2, 29, 12, 30)),
        ("INTEGER[]", "[1, null, 3]", [1, None, 3]),
        ("STRUCT(a INTEGER, b VARCHAR)", '{"a": 1, "b": null}', {"a": 1, "b": None}),
        ("STRUCT(a DATE)", '{"a": "2024-02-29"}', {"a": datetime.date(2024, 2, 29)}),
        ("STRUCT(a DOUBLE)", "{}", {"a": None}),
    ],
)
def test_values(sql: str, text: str, value: object) -> None:
    call = make_call("llm", "?", options={"return_type": sql})
    found = parse_answer(call, text)
    assert found == value
    assert pa.array([found, None], arrow_type(call)).to_pylist() == [value, None]
    declared = call.answer_type
    shown = duckdb.execute(
        f"SELECT CAST(CAST(? AS {'JSON' if declared.is_json else 'VARCHAR'}) AS {declared.sql})",
        [declared.text_of(found)],
    ).fetchall()
    assert shown == [(value,)]


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("INTEGER", "forty"),
        ("INTEGER", "3000000000"),
        ("INTEGER", "1.5"),
        ("UTINYINT", "-1"),
        ("DOUBLE", "nan"),
        ("DATE", "2023-02-29"),
        ("BOOLEAN", "maybe"),
        ("DECIMAL(4,2)", "1000"),
        ("INTEGER[]", "1, 2"),
        ("INTEGER[]", '{"a": 1}'),
        ("INTEGER[]", "[" * 100_000),
        ("STRUCT(a INTEGER)", '{"b": 1}'),
        ("STRUCT(a INTEGER)", '{"a": true}'),
        ("STRUCT(a INTEGER)", '{"a": "x"}'),
    ],
)
def test_what_is_no_value_is_an_error_that_shows_it(sql: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text[:10])):
        parse_answer(make_call("llm", "?", options={"return_type": sql}), text)


def test_patterns_match_their_values_only() -> None:
    for sql, good, bad in (
        ("INTEGER", ["0", "-7", "120"], ["", "01", "1.0", "+1", "one"]),
        ("DOUBLE", ["0.5", "-3", "10.25"], [".5", "1e3", "1."]),
        ("DATE", ["2024-12-31"], ["2024-13-01", "24-1-1", "2024-00-10"]),
        ("TIMESTAMP", ["2024-12-31 23:59:59"], ["2024-12-31", "2024-12-31 24:00:00"]),
    ):
        pattern = parse_type(sql).pattern
        assert pattern is not None
        assert all(re.fullmatch(pattern, text) for text in good)
        assert not any(re.fullmatch(pattern, text) for text in bad)


def test_json_schemas_become_sql_types() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "born": {"type": "string", "format": "date"},
            "n": {"type": ["integer", "null"]},
            "kind": {"enum": ["a", "b"]},
            "tags": {"type": "array", "items": {"type": "number"}},
        },
    }
    assert schema_type(schema).sql == "STRUCT(name VARCHAR, born DATE, n BIGINT, kind VARCHAR, tags DOUBLE[])"
    assert schema_type(json.dumps(schema)) == schema_type(schema)
    for wrong in ("[1]", "{", {"type": "object"}, {"type": "array"}, {"enum": []}, {"anyOf": [{}, {}]}, 3):
        with pytest.raises(CallError):
            schema_type(wrong)


@pytest.mark.parametrize(
    ("function", "second", "options", "message"),
    [
        ("llm", None, {"return_type": "BLOB"}, "llm: answers cannot have the type"),
        ("llm", None, {"return_type": 3}, "'return_type' must be"),
        ("llm", None, {"regex": ""}, "'regex' must be"),
        ("llm", None, {"regex": "a", "choices": ["a"]}, "'choices' and 'regex'"),
        ("llm", None, {"return_type": "INTEGER", "schema": "{}"}, "'schema' and 'return_type'"),
        ("llm_extract", "INTEGER", {}, "no members"),
        ("llm_extract", None, {}, "a JSON schema is an object"),
        ("llm_extract", "STRUCT(a INTEGER, A INTEGER)", {}, "two members"),
        ("llm_score", None, {"min": 5, "max": 5}, "'min' must be less"),
        ("llm_score", None, {"min": "low"}, "'min' must be a number"),
        ("llm_filter", None, {"return_type": "INTEGER"}, "no option 'return_type'"),
        ("llm", None, {"unordered": "contexts"}, "'unordered' must be"),
    ],
)
def test_mistakes_in_calls(function: str, second: object, options: dict, message: str) -> None:
    with pytest.raises(CallError, match=re.escape(message)):
        make_call(function, "?", second, options)


def test_scores() -> None:
    small, large = make_call("llm_score", "?"), make_call("llm_score", "?", options={"min": 0, "max": 1.5})
    assert small.choices == tuple(map(str, range(11)))
    assert small.wanted == "Answer with a whole number from 0 to 10"
    assert large.choices is None
    assert large.wanted == "Answer with a number from 0 to 1.5"
    assert parse_answer(small, "7") == 7.0
    assert parse_answer(large, "0.25") == 0.25
    for text in ("1.6", "-1", "good"):
        with pytest.raises(ValueError, match="expected"):
            parse_answer(large, text)


def test_calls_survive_json() -> None:
    for call in (
        make_call("llm_extract", "?", PERSON, {"unordered": ["a"]}),
        make_call("llm_score", "?", options={"max": 5}),
        make_call("llm", "?", options={"regex": "[a-z]+"}),
        make_call("llm", "?", options={"return_type": "DATE"}),
    ):
        assert Call.from_json(call.to_json()) == call


def test_the_plain_functions_know_schemas_and_scores() -> None:
    def answer(prompt: str, fields: dict, options: dict) -> str:
        if options["function"] == "llm_score":
            return options["choices"][fields["field1"] % 11]
        assert set(options["schema"]["properties"]) == {"name", "age"}
        return json.dumps({"name": f"no {fields['field1']}", "age": fields["field1"]})

    with duckdb.connect() as connection:
        registration = llmsql.register(connection, model=FakeModel(answer))
        sql = (
            "SELECT CAST(CAST(llm_extract('Who?', 'STRUCT(name VARCHAR, age INTEGER)', i) AS JSON) AS "
            "STRUCT(name VARCHAR, age INTEGER)) AS who, llm_score('How much?', i) AS score FROM range(3) t(i)"
        )
        assert connection.sql(sql).fetchall() == [({"name": f"no {i}", "age": i}, float(i)) for i in range(3)]
        registration.remove()


def typed(prompt: str, fields: dict, options: dict) -> str:
    """A value of whatever type is wanted, computed from the field `i`."""
    i = fields["i"]
    if options["function"] == "llm_score":
        return options["choices"][i % 11]
    if "choices" in options:
        return options["choices"][i % 2]
    if "schema" in options:
        if options["schema"]["type"] == "array":
            return json.dumps([i, 2])
        values = {"name": f"no {i}", "n": i, "day": f"2024-01-{i + 1:02}", "a": i}
        return json.dumps({name: values[name] for name in options["schema"]["properties"]})
    if options.get("return_type") == "DATE":
        return f"2024-02-{i + 1:02}"
    return f"ab{i}" if "regex" in options else str(i * 2)


THING = "'STRUCT(name VARCHAR, n INTEGER, day DATE)'"
STATEMENTS = {
    "SELECT llm('n', i, return_type := 'INTEGER') + 1 FROM t": ["INTEGER"],
    f"SELECT llm_extract('p', {THING}, i) FROM t": ['STRUCT("name" VARCHAR, n INTEGER, "day" DATE)'],
    f"SELECT s.name, s.day + 1 FROM (SELECT llm_extract('p', {THING}, i) AS s FROM t)": ["VARCHAR", "DATE"],
    f"SELECT llm_extract('p', {THING}, i).n AS n FROM t WHERE i > 0 ORDER BY n DESC": ["INTEGER"],
    "SELECT avg(llm_score('how', i)) FROM t": ["DOUBLE"],
    "SELECT i FROM t ORDER BY llm_score('how', i, min := -5, max := 5) DESC LIMIT 2": ["BIGINT"],
    "SELECT llm('l', i, return_type := 'INTEGER[]')[1] FROM t": ["INTEGER"],
    "SELECT i FROM t WHERE llm('w', i, return_type := 'BOOLEAN')": ["BIGINT"],
    "SELECT max(llm('d', i, return_type := 'date')) FROM t": ["DATE"],
    "SELECT llm('r', i, regex := '[a-z]{2}[0-9]+') FROM t": ["VARCHAR"],
    "SELECT llm('e', i, return_type := 'ENUM(''x'', ''y'')') FROM t": ["VARCHAR"],
    "SELECT llm('n', llm('m', i, return_type := 'INTEGER') AS i, return_type := 'BIGINT') FROM t": ["BIGINT"],
    """SELECT llm('s', i, schema := '{"type": "object", "properties": {"a": {"type": "integer"}}}').a FROM t""": [
        "BIGINT"
    ],
    "SELECT llm('u', i, [i, 3] AS c, return_type := 'BOOLEAN', unordered := ['c']) FROM t": ["BOOLEAN"],
}


@pytest.mark.parametrize("sql", STATEMENTS)
def test_typed_calls_are_real_types_planned_and_in_place(sql: str) -> None:
    answers = []
    for plan in (True, False):
        with llmsql.connect(model=FakeModel(typed), plan=plan) as con:
            con.execute("CREATE TABLE t AS SELECT range AS i FROM range(5)")
            relation = con.sql(sql)
            assert [str(kind).replace('"day"', "day") for kind in relation.types] == [
                kind.replace('"day"', "day") for kind in STATEMENTS[sql]
            ]
            rows = relation.fetchall()
            answers.append(rows if "ORDER BY" in sql else sorted(rows, key=repr))
    assert answers[0] == answers[1]
    assert answers[0]
    assert any(value is not None for row in answers[0] for value in row)


def test_an_answer_of_a_wrong_type_is_null_with_its_reason() -> None:
    with llmsql.connect(model=FakeModel(lambda p, f, o: "5" if f["i"] else "five")) as con:
        with pytest.warns(llmsql.LlmsqlWarning, match="1 of 2"):
            relation = con.sql("SELECT llm('n', i, return_type := 'INTEGER') FROM range(2) t(i)")
        assert sorted(relation.fetchall(), key=repr) == [(5,), (None,)]
        assert "expected INTEGER, the model answered 'five'" in con.last_query.errors[0].error


def test_the_engine_answers_in_the_type_it_is_asked_for() -> None:
    sql = """
        SELECT llm_extract('The product', 'STRUCT(name VARCHAR, price DOUBLE, sold DATE)', review,
                           max_tokens := 120) AS extracted,
               llm_score('How good is it?', review, max := 3) AS score,
               llm('How many?', review, return_type := 'INTEGER') AS number,
               llm('A code', review, regex := '[A-Z]{3}-[0-9]{2}') AS code
        FROM (VALUES ('A fine hose, bought in May.'), ('It leaks <|end|> and broke.')) t(review)"""
    with llmsql.connect() as con:
        rows = con.sql(sql).fetchall()
        failed = con.last_query.errors
    assert len(rows) == 2
    assert all(re.fullmatch("[A-Z]{3}-[0-9]{2}", code) for *_, code in rows)
    assert all(score in (0.0, 1.0, 2.0, 3.0) for _, score, _, _ in rows)
    assert all("cut after" in failure.error or "expected" in failure.error for failure in failed)
    for extracted, _, number, _ in rows:
        assert extracted is None or set(extracted) == {"name", "price", "sold"}
        assert number is None or isinstance(number, int)
