"""Every function with every option: each is honoured, or refused where it stands; fields of every type are shown."""

from __future__ import annotations

import pytest

import llmsql
from llmsql.functions import FUNCTIONS
from llmsql.optimizer import encode
from llmsql.testing import FakeModel

CALLS = {
    "llm": "llm('Q', s, l{})",
    "llm_filter": "llm_filter('Q', s, l{})",
    "llm_classify": "llm_classify('Q', ['a', 'b'], s, l{})",
    "llm_extract": "llm_extract('Q', 'STRUCT(a INTEGER)', s, l{})",
    "llm_score": "llm_score('Q', s, l{})",
    "llm_agg": "llm_agg('Q', s{})",
}
# (option, SQL of a value, what the model sees of it)
VALUES = {
    "max_tokens": ("7", {"max_tokens": 7}),
    "temperature": ("0.5", {"temperature": 0.5}),
    "seed": ("3", {"seed": 3}),
    "choices": ("['x', 'y']", {"choices": ["x", "y"]}),
    "return_type": ("'DATE'", {"return_type": "DATE"}),
    "schema": ('\'{"type": "array", "items": {"type": "integer"}}\'', {"return_type": "BIGINT[]"}),
    "regex": ("'[a-z]+'", {"regex": "[a-z]+"}),
    "min": ("-1", {"minimum": -1.0}),
    "max": ("4", {"maximum": 4.0}),
    "system": ("'be brief'", {"system": "be brief"}),
    "on_error": ("'fail'", {}),
    "reorder": ("false", {}),
    "unordered": ("['l']", {}),
    "model": ("'other'", {}),
    "distinct_rows": ("true", {}),
}
WRONG = {
    "max_tokens": ["0", "1.5", "'x'", "id", "(SELECT 1)"],
    "temperature": ["-1", "'hot'", "'inf'::DOUBLE"],
    "seed": ["-1", "1.5"],
    "choices": ["'a'", "[]", "['a', 'a']", "['']", "[1]", "['a', NULL]", "l"],
    "return_type": ["'FOO'", "3", "'STRUCT(a FOO)'", "'DECIMAL(99)'"],
    "schema": ["'{'", "'[1]'", '\'{"type": "nonsense"}\'', "3"],
    "regex": ["''", "'('", "'(?=x)'", "3"],
    "min": ["'x'", "11"],
    "max": ["'x'", "-2"],
    "system": ["5"],
    "on_error": ["'maybe'", "true"],
    "reorder": ["'no'", "1"],
    "unordered": ["'l'", "[1]"],
    "model": ["3"],
    "distinct_rows": ["1"],
}


class Recording(FakeModel):
    """A model that keeps the last call and its fields."""

    def __init__(self, name):
        super().__init__(lambda prompt, fields, options: self.reply(options))
        self.name = name

    def reply(self, options):
        if "choices" in options:
            return options["choices"][0]
        if options.get("return_type", "").endswith("[]"):
            return "[1]"
        if "schema" in options:
            return '{"a": 1}'
        return {"DATE": "2020-01-01"}.get(options.get("return_type"), "2" if "minimum" in options else "text")

    def answer(self, call, fields, settings, statistics):
        self.call, self.fields = call, fields
        return super().answer(call, fields, settings, statistics)


@pytest.fixture(scope="module")
def model():
    return Recording("own")


@pytest.fixture(scope="module")
def other():
    return Recording("other")


@pytest.fixture(scope="module")
def con(model, other):
    with llmsql.connect(model=model) as session:
        session.add_model("other", other)
        session.execute("CREATE TABLE t AS SELECT 1 AS id, 'x' AS s, ['b', 'a'] AS l")
        yield session


HONOURED = [(name, option) for name, function in FUNCTIONS.items() for option in function.options]
REFUSED = [
    (name, option)
    for name, function in FUNCTIONS.items()
    for option in VALUES
    if option not in (*function.options, function.second_name)
]
# As people write them who remember a name roughly; of each, what was meant.
MISSPELT = {
    "max_token": "max_tokens",
    "retun_type": "return_type",
    "shema": "schema",
    "Choice": "choices",
    "label": "labels",
    "onerror": "on_error",
    "distinct_row": "distinct_rows",
    "minimum": "min",
}


def test_every_option_of_every_function_is_here():
    assert sorted(CALLS) == sorted(FUNCTIONS)
    assert {option for _, option in HONOURED} == set(VALUES) == set(WRONG)


@pytest.mark.parametrize("arrow", [":=", "=>"])
@pytest.mark.parametrize(("name", "option"), HONOURED)
def test_an_option_is_honoured(con, model, other, name, option, arrow):
    sql, seen = VALUES[option]
    asked = other if option == "model" else model
    before = asked.calls
    con.sql(f"SELECT {CALLS[name].format(f', {option} {arrow} {sql}')} FROM t")
    assert asked.calls == before + 1
    call = asked.call
    shown = call.options()
    assert {key: shown[key] for key in seen} == seen
    assert call.on_error == ("fail" if option == "on_error" else None)
    assert call.reorder == (option != "reorder")
    assert call.unordered == (("l",) if option == "unordered" else ())
    assert call.distinct_rows == (option == "distinct_rows")
    assert con.last_query.errors == []


@pytest.mark.parametrize(("name", "option"), REFUSED)
def test_an_option_of_other_functions_is_refused(con, name, option):
    with pytest.raises(llmsql.CallError, match=rf"{name} has no option '{option}'") as caught:
        con.sql(f"SELECT 1,\n  {CALLS[name].format(f', {option} := {VALUES[option][0]}')} FROM t")
    assert (caught.value.line, caught.value.column) == (2, 3)


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        (name, written, meant)
        for name, function in FUNCTIONS.items()
        for written, meant in MISSPELT.items()
        if meant in (*function.options, function.second_name)
    ],
)
def test_a_misspelt_option_is_named_with_all_that_there_are(con, model, name, written, meant):
    listed = ", ".join(sorted({*FUNCTIONS[name].options, *filter(None, [FUNCTIONS[name].second_name])}))
    said = rf"^{name} has no option '{written.lower()}'; did you mean '{meant}'\? Its options are: {listed} \(line 1, "
    before = model.calls
    for call in (CALLS[name].format(f", {written} := 'x'"), f"{name}('Q', s, {written} => ['a', 'b'])"):
        for run in (con.sql, con.dry_run, con.explain, lambda sql: con.sql(f"EXPLAIN {sql}")):
            with pytest.raises(llmsql.CallError, match=said):
                run(f"SELECT {call} FROM t")
        with pytest.raises(llmsql.CallError, match=said):
            con.execute(f"UPDATE t SET s = {call}::VARCHAR")
    assert model.calls == before


def test_an_option_with_an_equals_sign_is_told(con):
    with pytest.raises(llmsql.CallError, match=r"if max_tokens is meant as an option, write max_tokens => "):
        con.sql("SELECT llm('Q', s, max_tokens = 3) FROM t")
    with pytest.raises(llmsql.CallError) as caught:
        con.sql("SELECT llm('Q', s, nothing = 3) FROM t")
    assert "option" not in str(caught.value)


def test_labels_and_schema_are_given_once(con):
    for call in (
        "llm_classify('Q', ['a'], s, labels := ['b'])",
        "llm_extract('Q', 'STRUCT(a INT)', s, schema := '{}')",
    ):
        with pytest.raises(llmsql.CallError, match=r"'(labels|schema)' is given twice"):
            con.sql(f"SELECT {call} FROM t")


@pytest.mark.parametrize(("option", "sql"), [(option, sql) for option, values in WRONG.items() for sql in values])
def test_impossible_values_are_refused_at_the_call(con, model, option, sql):
    name = next(name for name, function in FUNCTIONS.items() if option in function.options)
    if (option, sql) in (("regex", "'('"), ("regex", "'(?=x)'")):
        pytest.importorskip("llguidance")
    before = model.calls
    with pytest.raises(llmsql.CallError, match=rf"{name}: .*\(line 2, column 3\)"):
        con.sql(f"SELECT 1,\n  {CALLS[name].format(f', {option} := {sql}')} FROM t")
    assert model.calls == before


def test_on_error_fail_stops(con):
    with llmsql.connect(model=FakeModel(lambda *_: 1 / 0)) as failing:
        failing.execute("CREATE TABLE t AS SELECT 1 AS id, 'x' AS s, ['b', 'a'] AS l")
        for name, call in CALLS.items():
            with pytest.warns(llmsql.LlmsqlWarning, match="ZeroDivisionError"):
                assert failing.sql(f"SELECT {call.format('')} FROM t").fetchall() == [(None,)]
            with pytest.raises(llmsql.RowError, match=f"{name} failed: ZeroDivisionError"):
                failing.sql(f"SELECT {call.format(', on_error := $$fail$$')} FROM t")


def test_values_are_of_duckdb_types(con):
    found = {name: str(con.sql(f"SELECT {call.format('')} FROM t").types[0]) for name, call in CALLS.items()}
    assert found == {
        "llm": "VARCHAR",
        "llm_filter": "BOOLEAN",
        "llm_classify": "VARCHAR",
        "llm_extract": "STRUCT(a INTEGER)",
        "llm_score": "DOUBLE",
        "llm_agg": "VARCHAR",
    }


FIELDS = {
    "1::TINYINT AS v": '"v": 1',
    "12.50::DECIMAL(6, 2) AS v": '"v": 12.50',
    "0.1::DOUBLE AS v": '"v": 0.1',
    "170141183460469231731687303715884105727::HUGEINT AS v": '"v": 170141183460469231731687303715884105727',
    "true AS v": '"v": true',
    "'a\"b\nc' AS v": '"v": "a\\"b\\nc"',
    "DATE '2020-02-03' AS v": '"v": "2020-02-03"',
    "TIMESTAMP '2020-02-03 04:05:06' AS v": '"v": "2020-02-03T04:05:06"',
    "TIME '04:05:06' AS v": '"v": "04:05:06"',
    "INTERVAL 3 DAY AS v": '"v": "P0M3DT0S"',
    "'g'::ENUM('g', 'h') AS v": '"v": "g"',
    "'6d3d2541-8f2f-4d0e-9f7a-2d5c0e1f2a3b'::UUID AS v": '"v": "6d3d2541-8f2f-4d0e-9f7a-2d5c0e1f2a3b"',
    "['b', NULL, 'a'] AS v": '"v": ["b", null, "a"]',
    "[1, 2]::INTEGER[2] AS v": '"v": [1, 2]',
    "[{'q': 1, 'r': NULL::INTEGER}] AS v": '"v": [{"q": 1}]',
    "MAP {'k': 1.5} AS v": '"v": {"k": 1.5}',
    '\'{"z":[1, 2.50],\n "a": {"b: c": null}}\'::JSON AS v': '"v": {"z": [1, 2.50], "a": {"b: c": null}}',
    "'[]'::JSON AS v": '"v": []',
    "{'v': {'d': DATE '2020-01-01', 'n': NULL::INTEGER}} AS s": '"v": {"d": "2020-01-01"}',
    "union_value(n := 3) AS v": '"v": {"n": 3}',
}


@pytest.mark.parametrize("sql", FIELDS)
def test_fields_are_rendered_canonically(con, model, sql):
    name = sql.rsplit(" ", 1)[1]
    con.sql(f"SELECT llm('Q', {name}) FROM (SELECT {sql})")
    assert encode(model.fields).texts[0].to_pylist() == [FIELDS[sql] + ",\n"]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ("s, l", ["s", "l"]),
        ("t.s, upper(s) AS loud", ["s", "loud"]),
        ("*", ["id", "s", "l"]),
        ("t.*", ["id", "s", "l"]),
        ("t", ["id", "s", "l"]),
        ("{'a': s, 'b': id}", ["a", "b"]),
        ("struct_pack(a := s)", ["a"]),
        ('s AS "sel ect", s AS "größe"', ["sel ect", "größe"]),
        ("s, s", ["s", "s_1"]),
    ],
)
def test_fields_have_their_names(con, model, fields, names):
    con.sql(f"SELECT llm('Q', {fields}) FROM t")
    assert model.fields.column_names == names


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("'Q' || s", "Qx"),
        ("s", "x"),
        ("'Q' || 'R'", "QR"),
        ("id", "1"),
        ("DATE '2020-01-01' + id::INTEGER", "2020-01-02"),
    ],
)
def test_a_prompt_may_be_any_expression(con, model, prompt, asked):
    con.sql(f"SELECT llm({prompt}, l) FROM t")
    assert model.call.prompt.startswith(asked)
    assert model.fields.column_names == ["l"]


@pytest.mark.parametrize(
    ("call", "fields", "option"),
    [
        ("llm_classify('Q', labels := ['a', 'b'], s)", ["s"], ("choices", ["a", "b"])),
        ("llm_classify('Q', s, system := 'S', labels => ['a', 'b'])", ["s"], ("choices", ["a", "b"])),
        ("llm_extract('Q', s, schema := 'STRUCT(a INTEGER)')", ["s"], ("return_type", "STRUCT(a INTEGER)")),
        ("llm_classify('Is {S} in {l}? {{no}}', labels := ['a', 'b'])", ["S", "l"], ("choices", ["a", "b"])),
        ("llm('What of {l} and {L}?', max_tokens := 3)", ["L"], ("max_tokens", 3)),
    ],
)
def test_labels_by_name_and_fields_by_placeholder(con, model, call, fields, option):
    con.sql(f"SELECT {call} FROM t")
    assert model.fields.column_names == fields
    assert model.call.options()[option[0]] == option[1]


def test_a_prompt_that_varies_is_part_of_what_is_asked(con):
    model = FakeModel(lambda prompt, fields, options: f"{prompt}{fields['x']}")
    with llmsql.connect(model=model) as own:
        sql = "SELECT llm(p, x) FROM (VALUES ('a', 1), ('b', 1), ('a', 1), (NULL, 1), ('a', NULL)) t(p, x)"
        assert own.sql(sql).fetchall() == [("a1",), ("b1",), ("a1",), (None,), (None,)]
        assert model.calls == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("llm(NULL, s)", "the prompt must be a text"),
        ("llm(3, s)", "the prompt must be a text"),
        ("llm('  ', s)", "the prompt must be a text that is not empty"),
        ("llm('Q {z}', s)", "placeholder {z}"),
        ("llm('Q')", "no field to ask about"),
        ("llm()", "needs a prompt"),
        ("llm_classify('Q')", "needs a prompt and labels"),
        ("llm_classify('Q', s, l)", "the labels must be constant"),
        ("llm_extract('Q', 'INTEGER', s)", "has no members"),
        ("llm('Q', s, max_tokens := 1, max_tokens := 2)", "is given twice"),
        ("llm('Q', s, choices := ['a'], regex := 'a')", "'choices' and 'regex', not both"),
        ("llm('Q', s, adapter := 'a')", "not available in this version"),
        ("llm('Q', nix)", 'column "nix" not found'),
    ],
)
def test_wrong_calls_are_shown_where_they_are(con, call, message):
    with pytest.raises(llmsql.CallError) as caught:
        con.sql(f"SELECT 1,\n  {call} FROM t")
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("llm(l, s)", "the prompt must be a text, not list"),
        ("llm('Q', s, unordered := ['nix'])", "'unordered' names 'nix'"),
        ("llm('Q', s, unordered := ['s'])", "is no list"),
    ],
)
def test_wrong_columns_are_said(con, call, message):
    with pytest.raises(llmsql.CallError, match=message):
        con.sql(f"SELECT {call} FROM t")


def test_a_query_as_a_field(con, model):
    con.sql("SELECT llm('Q', (SELECT max(id) FROM t) AS m, s) FROM t")
    assert model.fields.to_pylist() == [{"m": 1, "s": "x"}]
