"""Sessions beside others: threads, attached databases, transactions, what is left behind, what happens after close."""

from __future__ import annotations

import copy
import gc
import sqlite3
import threading
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

import llmsql
from llmsql.result_cache import CacheWarning, ResultCache
from llmsql.testing import FakeModel


def say(prompt: str, fields: dict, options: dict) -> str:
    if fields.get("x") == "fails":
        raise ValueError("no idea")
    return options["choices"][0] if "choices" in options else "/".join(str(value) for value in fields.values())


@pytest.fixture
def con():
    with llmsql.connect(model=FakeModel(say)) as session:
        session.execute("CREATE TABLE t AS SELECT range AS id, chr(97 + (range % 3)::INTEGER) AS x FROM range(9)")
        yield session


def objects(connection) -> list[str]:
    """All relations and macros that are not DuckDB's own."""
    rows = connection.execute("""
        SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal
        UNION ALL SELECT sequence_name FROM duckdb_sequences() UNION ALL SELECT type_name FROM duckdb_types()
        WHERE NOT internal ORDER BY 1
    """).fetchall()
    return [name for (name,) in rows]


def in_threads(work, count: int = 6) -> None:
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert problems == []


REVIEWS = """
    SELECT i, llm_filter('Is the review positive?', r) AS yes, llm('Say', r, max_tokens := 3) AS said
    FROM (SELECT i, ['Great, I love it.', 'Terrible, it broke.', 'It is fine.'][1 + i % 3] || ' no. ' || i AS r
          FROM range({0}, {0} + 12) t(i)) ORDER BY i
"""


def test_many_threads_on_one_engine() -> None:
    pytest.importorskip("torch")
    with llmsql.connect(cache=False) as con:
        alone = {number: con.sql(REVIEWS.format(6 * number)).fetchall() for number in range(5)}
        engine = con._models.own.engine
        together: dict[int, list] = {}

        def work(number: int) -> None:
            if number % 2:
                with llmsql.connect(cache=False) as mine:  # another session, the same engine
                    assert mine._models.own.engine is engine
                    together[number] = mine.sql(REVIEWS.format(6 * number)).fetchall()
            else:
                with con.cursor() as mine:
                    together[number] = mine.sql(REVIEWS.format(6 * number)).fetchall()
                    assert mine.last_query.prompt_tokens > 0

        in_threads(work, 5)
        assert together == alone
        engine.check()


def test_threads_on_one_session_take_turns(con) -> None:
    """Results are fetched by cursors of their own: DuckDB 2 allows a connection one thread at a time."""

    def work(number: int) -> None:
        for _ in range(3):
            con.sql(f"CREATE OR REPLACE TABLE t{number} AS SELECT llm('Say', id) AS s FROM t WHERE id = {number}")

    in_threads(work)
    assert [con.sql(f"FROM t{number}").fetchall() for number in range(6)] == [[(str(number),)] for number in range(6)]


def test_other_work_after_a_statement_that_writes(con) -> None:
    con.execute("UPDATE t SET x = llm('Say', x, 1) WHERE id < 3")
    assert con.sql("SELECT count(*) FROM t WHERE x LIKE '%/1'").fetchall() == [(3,)]
    assert con.execute("DELETE FROM t WHERE llm_filter('?', x) AND id > 6").fetchall() == [(2,)]
    con.execute("DELETE FROM t WHERE llm_filter('?', x) AND id > 4")
    assert con.table("t").aggregate("count(*)").fetchall() == [(5,)]
    con.execute("UPDATE t SET x = llm('Say', x)")
    assert con.dry_run("SELECT llm('Say', x) FROM t").to_run == 5


def test_attached_databases(con, tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as other:
        other.execute("CREATE SCHEMA s; CREATE TABLE s.words AS SELECT 'foo' AS x UNION ALL SELECT 'bar'")
    con.execute(f"ATTACH '{path}' AS other")
    assert con.sql("SELECT llm('Say', x) AS y FROM other.s.words ORDER BY x").fetchall() == [("bar",), ("foo",)]
    con.execute(
        "CREATE TABLE other.s.answers AS SELECT x, llm('Say', x) AS y FROM other.s.words WHERE llm_filter('?', x)"
    )
    con.execute("UPDATE other.s.answers SET y = llm('Say', x, 1) WHERE x = 'foo'")
    assert con.sql("SELECT y FROM other.s.answers ORDER BY y").fetchall() == [("bar",), ("foo/1",)]
    con.execute("USE other.s")
    joined = "SELECT w.x, llm('Say', w.x, t.x) AS y FROM words w, memory.main.t t WHERE t.id = 1 AND w.x > 'c'"
    assert con.sql(joined).fetchall() == [("foo", "foo/b")]
    con.execute("USE memory.main")
    gc.collect()
    con.execute("DETACH other")
    con.execute(f"ATTACH '{path}' AS other (READ_ONLY)")
    assert con.sql("SELECT count(*) FROM other.s.words WHERE llm_filter('?', x)").fetchall() == [(2,)]
    with pytest.raises((llmsql.QueryError, duckdb.Error), match="read-only"):
        con.execute("INSERT INTO other.s.words SELECT llm('Say', x) FROM t")
    assert con.sql("SELECT llm('Say', x) AS y FROM t WHERE id = 0").fetchall() == [("a",)]


def test_a_transaction_sees_its_own_rows_and_tables(con) -> None:
    frame, table = pd.DataFrame({"x": ["p"]}), pa.table({"x": ["q"]})
    con.execute("BEGIN")
    con.execute("INSERT INTO t VALUES (100, 'new')")
    con.execute("CREATE TEMP TABLE mine AS SELECT 'own' AS x")
    sql = """SELECT llm('Say', x) AS y FROM (SELECT x FROM t WHERE id = 100 UNION ALL FROM mine UNION ALL
             SELECT x FROM frame UNION ALL SELECT x FROM "table") ORDER BY y"""
    assert con.sql(sql).fetchall() == [("new",), ("own",), ("p",), ("q",)]
    con.execute("UPDATE t SET x = llm('Say', x, id) WHERE id = 100")
    con.execute("ROLLBACK")
    assert con.sql("SELECT count(*) FROM t WHERE llm_filter('?', x)").fetchall() == [(9,)]
    assert frame is not None
    assert table is not None


@pytest.mark.parametrize("transaction", [False, True])
def test_nothing_is_left_behind(con, transaction: bool) -> None:
    before = objects(con)
    if transaction:
        con.execute("BEGIN")
    relation = con.sql("SELECT llm('Say', x) AS y FROM t WHERE llm_filter('a', id) AND llm_filter('b', x) LIMIT 2")
    assert len(relation.fetchall()) == 2
    del relation
    con.execute("SELECT llm('Say', x) FROM t").fetchall()
    con.execute("DELETE FROM t WHERE NOT llm_filter('keep', x)")
    con.execute("EXPLAIN ANALYZE SELECT llm('Say', x) FROM t").fetchall()
    con.dry_run("SELECT llm('Say', x) FROM t WHERE llm_filter('a', id)")
    sql = "SELECT llm('Say', 'fails' AS x, on_error := 'fail'), llm('Say', id) FROM t"
    for wrong in (sql, "SELECT llm('Say', id, foo := 1) FROM t"):
        with pytest.raises(llmsql.LlmsqlError):
            con.sql(wrong)
    gc.collect()
    con.execute("SELECT 1").fetchall()
    assert objects(con) == before
    if transaction:
        con.execute("COMMIT")


def test_names_like_ours_do_not_clash(con) -> None:
    names = ["__llmsql_rows_1", "llmsql_answered", "llmsql_keep", "value", "answers_1", "id", "n"]
    for name in names:
        con.execute(f"CREATE OR REPLACE TABLE \"{name}\" AS SELECT 1 AS id, 'v' AS value, 2 AS n, 3 AS a0, 4 AS c0")
        said = "llm('Say', value, n) AS llmsql_answered"
        sql = f"SELECT id, value, n, a0, c0, {said} FROM \"{name}\" WHERE llm_filter('?', a0)"
        assert con.sql(sql).fetchall() == [(1, "v", 2, 3, 4, "v/2")], name


@pytest.mark.parametrize("own", [False, True], ids=["a connection of ours", "the user's connection"])
def test_a_relation_after_close_says_so(own: bool) -> None:
    with duckdb.connect() as connection:
        session = llmsql.connect(*([connection] if own else []), model=FakeModel(say))
        relation = session.sql("SELECT llm('Say', range) AS y FROM range(3)")
        narrowed = relation.filter("y > '0'")
        session.close()
        for used in (relation, narrowed):
            with pytest.raises(duckdb.Error, match="until_the_session_closes" if own else "closed"):
                used.fetchall()
        for use in (session.sql, session.execute, session.dry_run, session.explain, lambda _: session.fetchall()):
            with pytest.raises(llmsql.ClosedError):
                use("SELECT 1")
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert objects(connection) == []


def test_statistics_can_be_copied_and_kept(con) -> None:
    con.sql("SELECT llm('Say', x) FROM t")
    kept = copy.deepcopy(con.last_query)
    con.sql("SELECT llm('Say', id) FROM t")
    assert (kept.model_calls, con.last_query.model_calls) == (3, 9)
    table = con.last_query.to_arrow()
    assert table.num_rows == 1
    assert {"call", "place", "rows", "distinct", "cached", "asked", "model_seconds", "hit_rate"} <= set(
        table.column_names
    )


def test_a_full_disk_in_the_middle_costs_the_savings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.sqlite"
    with llmsql.connect(model=FakeModel(say), cache=path) as con:
        con.sql("SELECT llm('Say', i) FROM range(20) t(i)")
        real = ResultCache._evict

        def full(self: ResultCache, connection: sqlite3.Connection) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(ResultCache, "_evict", full)
        con.cache.max_bytes = 16  # so that it is looked at with each answer
        with pytest.warns(CacheWarning, match="disk is full"):
            rows = con.sql("SELECT llm('Say', i) AS s FROM range(40) t(i)").fetchall()
        assert rows == [(str(i),) for i in range(40)]
        monkeypatch.setattr(ResultCache, "_evict", real)
        assert con.sql("SELECT llm('Say', i) AS s FROM range(3) t(i)").fetchall() == [("0",), ("1",), ("2",)]


def test_a_corrupt_cache_under_a_session_only_warns(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with llmsql.connect(model=FakeModel(say), cache=path) as con:
        con.sql("SELECT llm('Say', i) FROM range(20) t(i)")
        con.cache.close()
        path.write_bytes(b"this is no database, and never was one" * 100)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        with pytest.warns(CacheWarning, match="damaged"):
            rows = con.sql("SELECT llm('Say', i) AS s FROM range(20) t(i)").fetchall()
        assert rows == [(str(i),) for i in range(20)]
        con.sql("SELECT llm('Say', i) FROM range(20) t(i)")
        assert con.last_query.cached == 20, "it was started anew"


def test_warnings_point_at_the_users_line(con) -> None:
    calls = (
        lambda: con.sql("SELECT llm('Say', 'fails' AS x)"),
        lambda: con.execute("SELECT llm('Say', 'fails' AS x)"),
        lambda: llmsql.llm(pa.table({"x": ["fails"]}), "Say", model=FakeModel(say)),
    )
    for call in calls:
        with pytest.warns(llmsql.LlmsqlWarning) as caught:
            call()
        assert caught[0].filename == __file__
