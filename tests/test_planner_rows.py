"""Fewest rows: what the model is asked about, and that asking less never changes an answer or raises an error."""

from __future__ import annotations

import pytest

import llmsql
from llmsql.testing import FakeModel


class RecordingModel(FakeModel):
    """Remembers the fields that it was asked about."""

    def __init__(self, fn):
        super().__init__(fn)
        self.asked: list[tuple[str, dict]] = []

    def answer(self, call, fields, settings, statistics):
        self.asked += [(call.prompt, row) for row in fields.to_pylist()]
        yield from super().answer(call, fields, settings, statistics)


def digits(prompt, fields, options):
    """Yes to texts of digits alone; anything else is answered with the fields themselves."""
    text = "".join(str(value) for value in fields.values())
    if options["function"] == "llm_filter":
        return "Yes" if text.isdigit() else "No"
    return options["choices"][0] if "choices" in options else text


SETUP = (
    "CREATE TABLE t AS SELECT range AS id, CASE WHEN range % 3 = 0 THEN 'n' || range ELSE range::VARCHAR END AS x "
    "FROM range(30)"
)


@pytest.fixture
def con():
    with llmsql.connect(model=RecordingModel(digits), infer_types=False) as session:
        session.execute(SETUP)
        yield session


class TestHazards:
    """An expression that raises for some rows raises only where the user's own statement would."""

    NUMBERS = sorted(number for number in range(30) if number % 3)

    def test_a_cast_after_the_call_that_makes_it_safe(self, con):
        rows = con.sql("SELECT id FROM t WHERE llm_filter('A number?', x) AND x::INT > 2").fetchall()
        assert sorted(rows) == [(number,) for number in self.NUMBERS if number > 2]
        assert con.last_query.model_calls == 28, "1 and 2 are no more than 2, without asking"

    def test_a_cast_before_the_call_raises(self, con):
        with pytest.raises(llmsql.QueryError, match="Could not convert"):
            con.sql("SELECT id FROM t WHERE x::INT > 2 AND llm_filter('A number?', x)")

    def test_a_cast_of_a_row_that_the_call_lets_through_raises(self, con):
        with pytest.raises(llmsql.QueryError, match="Could not convert"):
            con.sql("SELECT id FROM t WHERE NOT llm_filter('A number?', x) AND x::INT > 2")

    def test_a_cast_as_an_argument(self, con):
        sql = "SELECT id, CASE WHEN llm_filter('A number?', x) THEN llm('Say', x::INT + 1) END AS next FROM t"
        assert sorted(con.sql(sql).fetchall()) == [(n, str(n + 1) if n % 3 else None) for n in range(30)]
        sql = "SELECT id FROM t WHERE llm_filter('A number?', x) AND llm('Say', x::INT) = '7'"
        assert con.sql(sql).fetchall() == [(7,)]

    def test_predicates_that_need_the_one_before_them_keep_their_order(self, con):
        con.execute("CREATE TABLE many AS SELECT range AS id, if(range % 3 = 0, 'n', '') || range AS x FROM range(600)")
        wanted = [(number,) for number in range(600) if number % 3 and number > 500]
        for second in (
            "llm('Say', x::INT) > '500'",
            "llm('Say', x)::INT > 500",
            "(x::INT > 500 OR llm_filter('No', 'n'))",
        ):
            sql = f"SELECT id FROM many WHERE llm_filter('A number?', x) AND {second}"
            rows = con.sql(sql).fetchall()
            assert sorted(row for row in rows if row[0] > 99) == wanted
            assert con.sql(f"{sql} AND id > 400 LIMIT 70").fetchall() == wanted
            assert con.last_query.model_calls <= 400

    def test_a_comparison_of_a_text_with_a_number(self, con):
        rows = con.sql("SELECT id FROM t WHERE llm_filter('A number?', x) AND x = 20").fetchall()
        assert rows == [(20,)]

    def test_a_cast_in_a_join(self, con):
        con.execute("CREATE TABLE u AS SELECT range AS n FROM range(30)")
        sql = "SELECT t.id, u.n FROM t, u WHERE llm_filter('A number?', t.x) AND t.id = u.n AND t.x::INT = u.n"
        assert sorted(con.sql(sql).fetchall()) == [(number, number) for number in self.NUMBERS]

    def test_numbers_after_a_call_are_no_hazard(self, con):
        con.sql("SELECT id FROM t WHERE llm_filter('A number?', x) AND id > 20")
        assert "TRY" not in con.last_query.plan
        assert con.last_query.model_calls == 9


@pytest.mark.parametrize(
    ("sql", "with_guards", "without"),
    [
        ("SELECT id, CASE WHEN id < 3 THEN llm('Say', x) END AS s FROM t", 3, 30),
        ("SELECT id FROM t WHERE id < 3 OR llm_filter('A number?', x)", 27, 30),
    ],
)
def test_short_circuit_on_equals_off(con, sql, with_guards, without):
    with llmsql.connect(model=FakeModel(digits), short_circuit=False, infer_types=False) as off:
        off.execute(SETUP)
        assert sorted(off.sql(sql).fetchall()) == sorted(con.sql(sql).fetchall())
        assert (con.last_query.model_calls, off.last_query.model_calls) == (with_guards, without)


def test_without_deduplication_each_place_asks_again():
    with llmsql.connect(model=FakeModel(digits), deduplicate=False) as session:
        session.execute(SETUP)
        session.sql("SELECT llm('Say', x) FROM t UNION ALL SELECT llm('Say', x) FROM t")
        assert session.last_query.model_calls == 60
