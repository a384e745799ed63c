"""Statements that write: errors before the model is asked, counts, transactions. Their answers: fixtures/planner."""

from __future__ import annotations

import pytest
from scratch_relations import scratch_relations

import llmsql
from llmsql.testing import FakeModel

SETUP = """
CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, x VARCHAR);
INSERT INTO t SELECT range, range % 4, 'x' || range % 7 FROM range(30);
CREATE TABLE s (k INTEGER, y VARCHAR);
INSERT INTO s VALUES (1, 'p'), (2, 'q'), (9, 'r'), (NULL, 'z');
CREATE VIEW v AS SELECT * FROM t;
"""


def answer(prompt, fields, options):
    if options["function"] == "llm_filter":
        return "Yes" if sum(map(ord, str(sorted(fields.items())))) % 2 else "No"
    return f"{prompt}: {', '.join(map(str, fields.values()))}"


@pytest.fixture
def con():
    with llmsql.connect(model=FakeModel(answer), infer_types=False) as session:
        session.execute(SETUP)
        yield session


def test_counts_and_rows_come_as_from_duckdb(con):
    assert con.execute("UPDATE t SET x = llm('Say', x) WHERE k = 1").fetchall() == [(8,)]
    assert con.description[0][0] == "Count"
    assert con.sql("DELETE FROM t WHERE k = 2 AND llm_filter('Odd?', x)").fetchall() == [(4,)]
    assert con.execute("INSERT INTO s SELECT id, llm('Say', x) FROM t WHERE id < 2").fetchall() == [(2,)]
    assert con.execute("CREATE TABLE u AS SELECT llm('Say', x) AS y FROM t WHERE id < 2").fetchall() == [(2,)]
    assert con.execute("UPDATE t SET x = llm('Say', x) WHERE id = 99").fetchall() == [(0,)]
    returned = con.sql("UPDATE t SET x = llm('Say', k) WHERE id = 3 RETURNING x, id AS number")
    assert (returned.columns, returned.fetchall()) == (["x", "number"], [("Say: 3", 3)])
    assert con.sql("CREATE VIEW w AS SELECT llm('Say', x) AS y FROM t") is None


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE t SET nowhere = llm('Say', x)", "nowhere"),
        ("UPDATE t SET k = 1,\n  x = llm('Say', nowhere)", r"nowhere.*line 2, column 7"),
        ("UPDATE nowhere SET x = llm('Say', x)", "nowhere"),
        ("UPDATE v SET x = llm('Say', x)", "base table"),
        ("UPDATE t SET x = llm('Say', x) RETURNING nowhere", "nowhere"),
        ("DELETE FROM t WHERE k = 1 AND llm_filter('Say', nowhere)", r"nowhere.*line 1, column 31"),
        ("DELETE FROM t USING s WHERE llm_filter('Say', k)", r"[Aa]mbiguous.*line 1, column 29"),
        ("INSERT INTO s SELECT llm('Say', x) FROM t", "2 columns but 1 values"),
        ("INSERT INTO s (nowhere) SELECT llm('Say', x) FROM t", "nowhere"),
        ("CREATE TABLE s AS SELECT llm('Say', x) FROM t", "already exists"),
        ("MERGE INTO t USING s ON t.k = s.k WHEN MATCHED THEN UPDATE SET x = llm('P', nowhere)", "nowhere.*column 68"),
        ("MERGE INTO t USING (SELECT llm('P', no) AS k FROM s) s ON t.k = s.k WHEN MATCHED THEN DELETE", "no"),
        ("MERGE INTO t USING s ON llm_filter('P', y) WHEN NOT MATCHED THEN INSERT BY NAME", "BY NAME"),
        ("WITH q AS (DELETE FROM s RETURNING y) SELECT llm('P', y) FROM q", "the CTE q writes"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_model_is_asked(con, sql, message):
    with pytest.raises(llmsql.LlmsqlError, match=message):
        con.sql(sql)
    assert con._models.own.calls == 0


def test_an_error_while_writing_names_no_scratch_object(con):
    with pytest.raises(llmsql.QueryError, match="Could not convert string 'Say: x1'") as caught:
        con.sql("UPDATE t SET k = llm('Say', x) WHERE id = 1")
    assert "__llmsql" not in str(caught.value)
    assert con.sql("SELECT count(*) FROM t WHERE k = 1").fetchall() == [(8,)]


def test_uncommitted_rows_are_changed_too(con):
    con.execute("BEGIN")
    con.execute("INSERT INTO t VALUES (500, 1, 'new')")
    assert con.execute("UPDATE t SET x = llm('Say', x), id = id + 1000 WHERE k = 1").fetchall() == [(9,)]
    assert con.execute("SELECT x FROM t WHERE id = 1500").fetchall() == [("Say: new",)]
    assert con.execute("DELETE FROM t WHERE id > 1000 AND x <> llm('Say', x)").fetchall() == [(9,)]
    con.execute("ROLLBACK")
    assert con.execute("SELECT count(*), max(id) FROM t").fetchall() == [(30, 29)]


def test_merge_asks_only_for_the_rows_that_an_action_takes(con):
    con.sql(
        "MERGE INTO t USING s ON t.k = s.k WHEN MATCHED AND t.id < 4 THEN UPDATE SET x = llm('Up', s.y, t.x) "
        "WHEN NOT MATCHED AND s.k > 0 THEN INSERT (id, k, x) VALUES (100, s.k, llm('In', y))"
    )
    assert con.last_query.model_calls == 3
    assert con.sql("SELECT x FROM t WHERE x LIKE '%:%' ORDER BY id").fetchall() == [
        ("Up: p, x1",),
        ("Up: q, x2",),
        ("In: r",),
    ]


def test_parameters(con):
    assert con.execute("UPDATE t SET x = llm($p, x) WHERE id < $n", {"p": "Say", "n": 2}).fetchall() == [(2,)]
    assert con.execute("DELETE FROM t WHERE id < ? AND llm(?, x) <> ?", [3, "Say", ""]).fetchall() == [(3,)]
    assert con.execute("INSERT INTO s VALUES (?, llm(?, ? AS v))", [3, "Say", "q"]).fetchall() == [(1,)]
    assert con.sql("SELECT y FROM s WHERE k = 3").fetchall() == [("Say: q",)]


def test_objects_of_the_caller(con):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"k": [1, 2], "z": ["a", "b"]})
    assert con.execute("UPDATE t SET x = llm('Say', frame.z) FROM frame WHERE frame.k = t.k").fetchall() == [(15,)]
    assert con.last_query.model_calls == 2
    assert frame is not None


def test_names_of_other_databases(con):
    con.execute("ATTACH ':memory:' AS other; CREATE TABLE other.q (x VARCHAR); INSERT INTO other.q VALUES ('a'), ('b')")
    assert con.execute("UPDATE other.main.q SET x = llm('Say', q.x) WHERE q.x = 'a' RETURNING x").fetchall() == [
        ("Say: a",)
    ]
    assert con.execute("DELETE FROM other.q WHERE llm('Say', x) = 'Say: b'").fetchall() == [(1,)]
    assert con.execute("CREATE TABLE IF NOT EXISTS other.q AS SELECT llm('Say', x) FROM t").fetchall() == []
    assert con.last_query.model_calls == 0


def test_no_scratch_object_is_left(con):
    con.execute("UPDATE t SET x = llm('Say', x)")
    con.execute("MERGE INTO t USING s ON t.k = s.k WHEN MATCHED AND llm_filter('P', y) THEN DELETE")
    assert scratch_relations(con) == []
