"""Answers are joined to arguments byte by byte, whatever the collation of a column says is equal."""

from __future__ import annotations

import pytest

import llmsql
from llmsql.testing import FakeModel

TEXTS = ["a", "A", "b", None, "É", "e"]
ROWS = "VALUES (1, 'a'), (2, 'A'), (3, 'b'), (4, NULL), (5, 'É'), (6, 'e')"


def echo(prompt, fields, options):
    text = str(next(iter(fields.values())))
    return ("Yes" if text.isupper() else "No") if options["function"] == "llm_filter" else f"<{text}>"


WANTED = [(number, text, text and f"<{text}>") for number, text in enumerate(TEXTS, start=1)]


@pytest.fixture
def con():
    with llmsql.connect(model=FakeModel(echo)) as session:
        session.execute(f"CREATE TABLE plain AS SELECT * FROM ({ROWS}) t(id, x)")
        yield session


def collated(session):
    session.execute("CREATE TABLE t(id INTEGER, x VARCHAR COLLATE NOCASE.NOACCENT)")
    session.execute(f"INSERT INTO t {ROWS}")


def answers(session, source):
    return sorted(session.sql(f"SELECT id, x, llm('Say', x) AS y FROM {source}").fetchall())


def test_a_column_of_a_table(con):
    collated(con)
    assert answers(con, "t") == WANTED
    assert con.last_query.model_calls == 5


@pytest.mark.parametrize(
    "source",
    [
        "(SELECT id, x COLLATE NOCASE AS x FROM plain)",
        "temporary",
        "a_view",
    ],
)
def test_other_ways_to_a_collation(con, source):
    con.execute("CREATE TEMP TABLE temporary AS SELECT id, x COLLATE NOCASE AS x FROM plain")
    con.execute("CREATE VIEW a_view AS SELECT id, x COLLATE NOCASE AS x FROM plain")
    if source != "temporary":
        con.execute("DROP TABLE temporary")
    if source != "a_view":
        con.execute("DROP VIEW a_view")
    assert answers(con, source) == WANTED


def test_a_relation_of_the_caller(con):
    relation = con.sql("SELECT id, x COLLATE NOCASE AS x FROM plain")
    assert relation.columns == ["id", "x"]
    assert sorted(con.sql("SELECT id, x, llm('Say', x) AS y FROM relation").fetchall()) == WANTED


def test_the_default_collation(con):
    con.execute("SET default_collation = 'NOCASE'")
    assert answers(con, "plain") == WANTED


def test_filters_lists_structs_and_shared_answers(con):
    collated(con)
    rows = con.sql("SELECT id FROM t WHERE llm_filter('Loud?', x) AND llm('Say', x) IS NOT NULL").fetchall()
    assert sorted(rows) == [(2,), (5,)]
    rows = con.sql("SELECT id, llm('Say', {'x': x}), llm('Say', [x]) FROM t WHERE id <> 4").fetchall()
    assert sorted(rows) == [(n, f"<{text}>", f"<['{text}']>") for n, text in enumerate(TEXTS, start=1) if text]
    sql = "SELECT llm('Say', x) FROM t WHERE id = 1 UNION ALL SELECT llm('Say', x) FROM t WHERE id = 2"
    assert sorted(con.sql(sql).fetchall()) == [("<A>",), ("<a>",)]
    assert con.last_query.model_calls == 2


def test_without_collations_plans_are_as_they_were(con):
    con.sql("SELECT llm('Say', x) FROM plain")
    assert "encode" not in con.last_query.plan.lower()
