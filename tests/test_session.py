"""Sessions: results, parameters, the caller's variables, transactions, errors, cleaning up."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from scratch_relations import scratch_relations

import llmsql
from llmsql.duckdb_catalog import DuckDBCatalog, _Functions
from llmsql.testing import FakeModel


def shout(prompt, fields, options):
    if options["function"] == "llm_filter":
        return "Yes" if "a" in str(list(fields.values())) else "No"
    if "choices" in options:
        return options["choices"][0]
    return "/".join(f"{name}={value}" for name, value in sorted(fields.items()))


@pytest.fixture
def con():
    with llmsql.connect(model=FakeModel(shout)) as session:
        session.execute("CREATE TABLE t AS SELECT range AS id, chr(97 + (range % 3)::INTEGER) AS x FROM range(9)")
        yield session


class TestResults:
    def test_relations_are_real_and_cost_nothing_again(self, con):
        relation = con.sql("SELECT id, llm('Say', x) AS said FROM t")
        assert isinstance(relation, duckdb.DuckDBPyRelation)
        assert con.last_query.model_calls == 3
        asked = con._models.own.calls
        for _ in range(3):
            assert len(relation.fetchall()) == 9
            assert "said" in str(relation)
        assert relation.filter("id < 2").fetchall() == [(0, "x=a"), (1, "x=b")]
        assert con._models.own.calls == asked

    def test_a_relation_outlives_the_statement_and_goes_with_its_last_user(self, con):
        narrowed = con.sql("SELECT id, llm('Say', x) AS said FROM t").filter("id = 1")
        gc.collect()
        con.execute("DROP TABLE t")
        assert narrowed.fetchall() == [(1, "x=b")]
        assert len(scratch_relations(con)) == 1
        del narrowed
        gc.collect()
        con.execute(
            "SELECT 1"
        ).fetchall()  # before Python 3.13 a frame's f_locals keeps `narrowed` until it is read again
        assert scratch_relations(con) == []

    def test_types_survive(self, con):
        sql = (
            "SELECT 1::HUGEINT AS h, uuid() IS NOT NULL AS u, 'a'::ENUM('a', 'b') AS e, INTERVAL 1 DAY AS i, "
            "TIMETZ '10:00:00+02' AS tz, BIT '101' AS b, '{}'::JSON AS j, [1, 2]::INTEGER[2] AS f, NULL AS n, "
            "llm_filter('A?', x) AS yes FROM t LIMIT 1"
        )
        relation = con.sql(sql)
        plain = con.sql(sql.replace("llm_filter('A?', x)", "true"))
        assert relation.types == plain.types
        assert relation.fetchall() == plain.fetchall()

    def test_equal_column_names_survive(self, con):
        assert con.sql("SELECT x, x, llm('Say', x) AS x FROM t LIMIT 1").columns == ["x", "x", "x"]

    def test_execute_fetches_like_duckdb(self, con):
        assert con.execute("SELECT llm('Say', x) AS said FROM t WHERE id = 0").fetchone() == ("x=a",)
        frame = con.execute("SELECT id, llm('Say', x) AS said FROM t").df()
        assert list(frame.columns) == ["id", "said"]
        assert con.execute("SELECT llm('Say', x) FROM t").description[0][0] == "llm('Say', x)"

    def test_statements_without_calls_are_duckdb_own(self, con):
        assert con.sql("SELECT 41 + 1").fetchall() == [(42,)]
        assert con.execute("SELECT ?", [5]).fetchall() == [(5,)]
        assert con.table("t").count("*").fetchall() == [(9,)]
        with pytest.raises(duckdb.CatalogException):
            con.sql("SELECT * FROM nowhere")
        assert con.sql("SELECT 'llm(x)' AS text").fetchall() == [("llm(x)",)]

    def test_several_statements_in_one_text(self, con):
        relation = con.sql("CREATE TABLE u AS SELECT llm('Say', x) AS s FROM t; SELECT count(*) FROM u")
        assert relation.fetchall() == [(9,)]

    def test_writing_statements(self, con, tmp_path):
        con.sql("CREATE TABLE u AS SELECT DISTINCT llm('Say', x) AS s FROM t")
        con.sql("INSERT INTO u SELECT llm('Say', id) FROM t WHERE id = 7")
        assert sorted(con.sql("FROM u").fetchall()) == [("id=7",), ("x=a",), ("x=b",), ("x=c",)]
        con.sql(f"COPY (SELECT llm('Say', x) AS s FROM t WHERE id = 1) TO '{tmp_path}/out.csv' (HEADER)")
        assert (tmp_path / "out.csv").read_text() == "s\nx=b\n"
        con.sql("UPDATE u SET s = llm('Say', s) WHERE s = 'x=a'")
        assert ("s=x=a",) in con.sql("FROM u").fetchall()
        con.sql("DELETE FROM u WHERE llm_filter('Has an a?', s)")
        assert sorted(con.sql("FROM u").fetchall()) == [("id=7",), ("x=b",), ("x=c",)]

    def test_statements_that_show_rows(self, con):
        described = con.sql("DESCRIBE SELECT id, llm_filter('a?', x) AS yes FROM t").fetchall()
        assert [row[:2] for row in described] == [("id", "BIGINT"), ("yes", "BOOLEAN")]
        assert con._models.own.calls == 0
        assert len(con.sql("SUMMARIZE SELECT llm('Say', x) AS s FROM t").fetchall()) == 1
        pivoted = con.sql("PIVOT (SELECT llm('Say', x) AS s FROM t) ON s USING count(*)")
        assert pivoted.columns == ["x=a", "x=b", "x=c"]
        assert con.sql("VALUES (llm('Say', 'v' AS x))").fetchall() == [("x=v",)]
        written = con.sql("INSERT INTO t SELECT 50, llm('Say', x) FROM t WHERE id = 0 RETURNING x, id")
        assert written.fetchall() == [("x=a", 50)]
        assert written.columns == ["x", "id"]

    def test_macros(self, con):
        con.sql("CREATE MACRO say(y) AS llm('Say', y)")
        assert con.sql("SELECT say(x) FROM t WHERE id = 1").fetchall() == [("y=b",)]

    def test_statements_that_cannot_be_planned_say_so(self, con):
        with pytest.raises(llmsql.QueryError, match="of a statement with LLM calls"):
            con.sql("EXPLAIN PREPARE p AS SELECT llm('Say', x) FROM t")

    def test_prepared_statements(self, con):
        con.sql("PREPARE p AS SELECT id, llm($2, x) AS s FROM t WHERE id < $1; PREPARE q AS SELECT $1 + 1")
        assert con._models.own.calls == 0
        assert con.sql("EXECUTE p(2, 'Say')").fetchall() == [(0, "x=a"), (1, "x=b")]
        assert con.execute("EXECUTE P(1, 'Say'); EXECUTE q(4)").fetchall() == [(5,)]
        con.execute('PREPARE "my ""p" AS UPDATE t SET x = llm(\'Say\', x) WHERE id = $top')
        assert con.execute('EXECUTE "my ""p"(top := 1)').fetchall() == [(1,)]
        assert con.sql("SELECT x FROM t WHERE id = 1").fetchall() == [("x=b",)]
        with pytest.raises(llmsql.QueryError, match=r"takes \$1, \$2 and is given \$1"):
            con.sql("EXECUTE p(2)")
        con.sql("DEALLOCATE p")
        with pytest.raises(duckdb.Error, match="p"):
            con.sql("EXECUTE p(2, 'Say')")
        con.sql("PREPARE q AS SELECT llm('Say', x) AS s FROM t WHERE id = 0; PREPARE q AS SELECT 7")
        assert con.execute("EXECUTE q").fetchall() == [(7,)]

    def test_a_view_over_a_call_is_computed_when_it_is_used(self, con):
        con.sql("CREATE VIEW v AS SELECT id, llm('Say', x) AS s FROM t")
        assert con._models.own.calls == 0
        assert con.sql("SELECT s FROM v WHERE id = 2").fetchall() == [("x=c",)]


class TestInputs:
    def test_parameters(self, con):
        sql = "SELECT id, llm($prompt, x) AS s FROM t WHERE id < $top"
        assert con.sql(sql, params={"prompt": "Say", "top": 2}).fetchall() == [(0, "x=a"), (1, "x=b")]
        sql = "SELECT id, llm_classify(?, ?, x) AS s FROM t WHERE id < ? AND llm_filter('a?', x) LIMIT ?"
        assert con.execute(sql, ["Which?", ["p", "q"], 5, 1]).fetchall() == [(0, "p")]

    def test_a_parameter_that_is_missing_is_named_as_the_user_wrote_it(self, con):
        with pytest.raises(llmsql.CallError, match=r"parameters: \$1 \(line 1, column 8\)$"):
            con.sql("SELECT llm('Say', $1)")

    def test_variables_of_the_caller(self, con):
        frame = pd.DataFrame({"word": ["u", "v", "u"]})
        table = pa.table({"word": ["w"]})
        assert con.sql("SELECT llm('Say', word) AS s FROM frame").fetchall() == [("word=u",), ("word=v",), ("word=u",)]
        assert con.sql("SELECT llm('Say', word) AS s FROM table").fetchall() == [("word=w",)]
        relation = con.sql("SELECT 'r' AS word")
        assert con.execute("SELECT llm('Say', word) AS s FROM relation").fetchall() == [("word=r",)]
        assert con.sql("SELECT count(*) FROM frame").fetchall() == [(3,)]
        assert all(variable is not None for variable in (frame, table, relation))

    def test_our_own_variables_are_not_visible(self, con):
        for name in ("self", "statements", "variables", "query", "runner"):
            with pytest.raises((duckdb.Error, llmsql.LlmsqlError)):
                con.sql(f"SELECT llm('Say', x) FROM {name}")

    def test_a_stream_is_read_once(self, con):
        reader = pa.table({"word": ["a", "b", "a"]}).to_reader()
        relation = con.sql("SELECT word, llm('Say', word) AS s FROM reader WHERE llm_filter('a?', word)")
        assert relation.fetchall() == [("a", "word=a"), ("a", "word=a")]
        assert reader is not None

    def test_files(self, con, tmp_path):
        (tmp_path / "words.csv").write_text("word\nfoo\nbar\n")
        rows = con.sql(f"SELECT llm('Say', word) AS s FROM '{tmp_path}/words.csv'").fetchall()
        assert rows == [("word=foo",), ("word=bar",)]

    def test_random_sources_are_read_once(self, con):
        sql = "SELECT q.r, llm('Say', q.r) AS s FROM (SELECT random() AS r FROM range(50)) q"
        rows = con.sql(sql).fetchall()
        assert [s for _, s in rows] == [f"r={r!r}" for r, _ in rows]
        sampled = con.sql("SELECT q.id, llm('Say', q.id) AS s FROM (SELECT * FROM t USING SAMPLE 4) q").fetchall()
        assert [s for _, s in sampled] == [f"id={i}" for i, _ in sampled]

    def test_uncommitted_rows_and_temporary_tables_are_seen(self, con):
        con.execute("BEGIN")
        con.execute("INSERT INTO t VALUES (100, 'zz')")
        con.execute("CREATE TEMP TABLE mine AS SELECT 'tmp' AS x")
        assert con.sql("SELECT llm('Say', x) AS s FROM t WHERE id = 100").fetchall() == [("x=zz",)]
        assert con.sql("SELECT llm('Say', x) AS s FROM mine").fetchall() == [("x=tmp",)]
        con.execute("ROLLBACK")
        assert con.sql("SELECT count(*) FROM t").fetchall() == [(9,)]

    def test_a_database_file_and_a_read_only_one(self, tmp_path):
        path = tmp_path / "words.duckdb"
        with llmsql.connect(path, model=FakeModel(shout)) as session:
            session.execute("CREATE TABLE w AS SELECT 'foo' AS word")
        with llmsql.connect(path, model=FakeModel(shout), read_only=True) as session:
            assert session.sql("SELECT llm('Say', word) AS s FROM w").fetchall() == [("word=foo",)]

    def test_a_connection_of_the_user_stays_open(self):
        with duckdb.connect() as connection:
            connection.execute("CREATE TEMP TABLE w AS SELECT 'foo' AS word")
            with llmsql.connect(connection, model=FakeModel(shout)) as session:
                assert session.sql("SELECT llm('Say', word) AS s FROM w").fetchall() == [("word=foo",)]
            assert connection.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(1,)]
            with pytest.raises(duckdb.CatalogException):
                connection.execute("SELECT llm('Say', word) FROM w")

    def test_threads_with_cursors(self, con):
        rows: dict[int, list] = {}

        def work(number):
            with con.cursor() as mine:
                rows[number] = mine.sql(f"SELECT llm('Say', id) AS s FROM t WHERE id = {number}").fetchall()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert rows == {number: [(f"id={number}",)] for number in range(6)}


class TestErrors:
    @pytest.mark.parametrize(
        ("sql", "text", "line", "column"),
        [
            ("SELECT llm('Say', nope) FROM t", '"nope" not found', 1, 8),
            ("SELECT id,\n  llm('Say', x, max_token := 3) FROM t", "did you mean 'max_tokens'", 2, 3),
            ("SELECT llm('Say', x, adapter := 'a') FROM t", "not available in this version", 1, 8),
            ("SELECT llm('Say') FROM t", "no field", 1, 8),
            ("SELECT llm() FROM t", "needs a prompt", 1, 8),
            ("SELECT llm_filter('', x) FROM t", "not empty", 1, 8),
            ("SELECT llm(NULL, x) FROM t", "must be a text", 1, 8),
            ("SELECT llm_classify('Which?', x) FROM t", "must be constant", 1, 8),
            ("SELECT llm_classify('Which?', [], x) FROM t", "empty", 1, 8),
            ("SELECT llm_classify('Which?', ['a', 'a'], x) FROM t", "given twice", 1, 8),
            ("SELECT llm('Say', x, temperature := -1) FROM t", "'temperature' must be", 1, 8),
            ("SELECT llm('Say', x, max_tokens := id) FROM t", "must be constant", 1, 8),
            ("SELECT llm('About {nobody}', x) FROM t", "no such field", 1, 8),
            ("SELECT 1 FROM t WHERE id > 2 AND llm_agg('Say', x)", "WHERE sees rows", 1, 34),
            ("SELECT 1 FROM t WHERE id > 2 AND llm_extract('Say')", "a schema", 1, 34),
            ("SELECT llm_extract('Say', x, id) FROM t", "the schema must be constant", 1, 8),
            ("SELECT llm_extract('Say', 'INT', x) FROM t", "no members", 1, 8),
            ("SELECT ? AS n, llm('Say', nope) FROM t", '"nope" not found', 1, 16),
        ],
    )
    def test_wrong_calls_name_their_place(self, con, sql, text, line, column):
        with pytest.raises(llmsql.CallError) as caught:
            con.sql(sql, params=[1] if "?" in sql and sql.startswith("SELECT ?") else None)
        assert text in str(caught.value)
        assert (caught.value.line, caught.value.column) == (line, column)
        assert con.sql("SELECT llm('Say', x) AS s FROM t LIMIT 1").fetchall() == [("x=a",)]

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT llm('Say', x FROM t",
            "SELECT llm('Say', x) FROM nowhere",
            "SELECT nope, llm('Say', x) FROM t",
            "SELECT llm('Say', x) + 'a'::DATE FROM t",
        ],
    )
    def test_wrong_statements(self, con, sql):
        with pytest.raises(llmsql.QueryError):
            con.sql(sql).fetchall()
        assert con.sql("SELECT llm('Say', x) AS s FROM t LIMIT 1").fetchall() == [("x=a",)]
        assert scratch_relations(con) == []

    def test_a_failed_row_is_null_and_told(self, con):
        def picky(prompt, fields, options):
            if fields["x"] == "b":
                raise ValueError("no b here")
            return fields["x"]

        with llmsql.connect(model=FakeModel(picky)) as session:
            with pytest.warns(llmsql.LlmsqlWarning, match="1 of 3 rows failed"):
                rows = session.sql("SELECT x, llm('Say', x) AS s FROM (VALUES ('a'), ('b'), ('c')) t(x)").fetchall()
            assert rows == [("a", "a"), ("b", None), ("c", "c")]
            (failure,) = session.last_query.errors
            assert failure.values == {"x": "b"}
            assert "no b here" in failure.error
            with pytest.raises(llmsql.RowError, match=r"no b here.*x='b'"):
                session.sql("SELECT llm('Say', x, on_error := 'fail') AS s FROM (VALUES ('a'), ('b')) t(x)")
            assert session.sql("SELECT llm('Say', 'c' AS x) AS s").fetchall() == [("c",)]
            assert scratch_relations(session) == []

    def test_answers_outside_of_the_choices_fail(self):
        with llmsql.connect(model=FakeModel(lambda p, f, o: "perhaps")) as session:
            with pytest.warns(llmsql.LlmsqlWarning):
                assert session.sql("SELECT llm_filter('a?', 'x') AS yes").fetchall() == [(None,)]
            with pytest.warns(llmsql.LlmsqlWarning):
                assert session.sql("SELECT llm_classify('a?', ['p'], 'x') AS c").fetchall() == [(None,)]

    def test_an_error_in_a_call_left_in_place_keeps_its_type(self):
        with llmsql.connect(model=FakeModel(lambda p, f, o: "perhaps"), on_error="fail", plan=False) as session:
            with pytest.raises(llmsql.RowError, match="perhaps"):
                session.sql("SELECT llm_filter('a?', 'x') AS yes")

    def test_an_error_inside_the_users_transaction(self, con):
        con.execute("BEGIN")
        con.execute("INSERT INTO t VALUES (100, 'zz')")
        with pytest.raises(llmsql.CallError):
            con.sql("SELECT llm('Say', x, foo := 1) FROM t")
        assert con.sql("SELECT llm('Say', x) AS s FROM t WHERE id = 100").fetchall() == [("x=zz",)]
        con.execute("ROLLBACK")

    def test_a_closed_session_says_so(self):
        session = llmsql.connect(model=FakeModel(shout))
        session.close()
        session.close()
        with pytest.raises(llmsql.ClosedError):
            session.sql("SELECT llm('Say', 'x')")
        with pytest.raises(llmsql.ClosedError):
            session.execute("SELECT 1")

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"kv_memry": 3}, "did you mean 'kv_memory'"),
            ({"plan": 1}, "must be True or False"),
            ({"batch_rows": 0}, "at least 1"),
            ({"on_error": "explode"}, "'null' or 'fail'"),
            ({"model": 3}, "'model' must be"),
        ],
    )
    def test_wrong_settings(self, options, text):
        with pytest.raises(llmsql.SettingError, match=text):
            llmsql.connect(**{"model": FakeModel(shout), **options})

    def test_ctrl_c_leaves_a_usable_session(self, con):
        def interrupted(prompt, fields, options):
            raise KeyboardInterrupt

        with llmsql.connect(model=FakeModel(interrupted)) as session:
            with pytest.raises(KeyboardInterrupt):
                session.sql("SELECT llm('Say', 'x')")
            assert session.sql("SELECT 1").fetchall() == [(1,)]
            assert scratch_relations(session) == []


class TestSwitches:
    def test_rows_reach_the_model_in_the_same_order_each_time(self):
        seen: list[list[object]] = []
        for _ in range(3):
            asked: list[object] = []
            with llmsql.connect(model=FakeModel(lambda p, f, o, asked=asked: asked.append(f["n"]) or "x")) as session:
                session.execute("SET threads = 4")
                session.execute("CREATE TABLE many AS SELECT range % 5000 AS n FROM range(300000)")
                session.sql("SELECT count(llm('Say', n)) AS s FROM many")
            seen.append(asked)
        assert seen[0] == seen[1] == seen[2]
        assert sorted(seen[0]) == list(range(5000))

    SQL = "SELECT id, llm('Say', x) AS s FROM t WHERE llm_filter('a?', x) OR id > 4"

    @pytest.mark.parametrize("switch", ["plan", "deduplicate", "reorder"])
    def test_on_equals_off(self, con, switch):
        with llmsql.connect(model=FakeModel(shout), **{switch: False}) as off:
            off.execute("CREATE TABLE t AS SELECT range AS id, chr(97 + (range % 3)::INTEGER) AS x FROM range(9)")
            assert sorted(off.sql(self.SQL).fetchall()) == sorted(con.sql(self.SQL).fetchall())

    def test_without_deduplication_every_row_is_asked(self):
        with llmsql.connect(model=FakeModel(shout), deduplicate=False) as session:
            rows = session.sql("SELECT llm('Say', range % 2) AS s FROM range(10)").fetchall()
            assert session.last_query.model_calls == 10
            assert len(rows) == 10

    def test_batches_of_rows_give_the_same_answers(self, con):
        with llmsql.connect(model=FakeModel(shout), batch_rows=2) as session:
            rows = session.sql("SELECT range, llm('Say', range % 7) AS s FROM range(20)").fetchall()
            assert rows == [(n, f"range % 7={n % 7}") for n in range(20)] or rows == [
                (n, f'("range" % 7)={n % 7}') for n in range(20)
            ]
            assert session.last_query.model_calls == 7


def test_register_adds_plain_functions():
    with duckdb.connect() as connection:
        model = FakeModel(shout)
        registration = llmsql.register(connection, model=model)
        rows = connection.execute("SELECT llm('Say', {'n': range % 3}) FROM range(3000)").fetchall()
        assert rows == [(f"n={n % 3}",) for n in range(3000)]
        assert model.calls <= 6, "equal rows of a chunk are asked once"
        assert registration.statistics.model_calls == model.calls
        assert connection.execute("SELECT llm('Say', 'v', 2)").fetchall() == [("field1=v/field2=2",)]
        registration.remove()
        with pytest.raises(duckdb.CatalogException):
            connection.execute("SELECT llm('Say', 1)")


def test_functions_of_an_extension_that_is_loaded_later_are_known(con, monkeypatch):
    earlier = _Functions(names=frozenset({"lower"}), aggregate=frozenset(), volatile=frozenset())
    monkeypatch.setattr(DuckDBCatalog, "_built_in", earlier)
    found = con.sql("SELECT llm('Say', entropy(x)) AS s FROM t GROUP BY id % 3 = 0 HAVING entropy(x) > 0.1")
    assert [said[:12] for (said,) in found.fetchall()] == ["ENTROPY(x)=1"]


def test_explain_runs_nothing(con):
    text = con.explain("SELECT llm('Say', x) FROM t WHERE id > 2")
    assert "ask llm('Say', x)" in text
    assert con._models.own.calls == 0
    rows = con.sql("EXPLAIN SELECT llm('Say', x) FROM t").fetchall()
    assert rows[0][0] == "llm_plan"
    assert con._models.own.calls == 0
    analyzed = con.sql("EXPLAIN ANALYZE SELECT llm('Say', x) FROM t").fetchall()
    assert con._models.own.calls == 3
    assert "distinct" in analyzed[0][1]


@pytest.mark.parametrize("close", ["", "con.close()", "del con"])
def test_the_interpreter_ends_quietly(close):
    code = (
        "import llmsql, duckdb\n"
        "from llmsql.testing import FakeModel\n"
        "con = llmsql.connect(model=FakeModel(lambda p, f, o: 'x'))\n"
        "con.sql(\"SELECT llm('p', 'a')\").fetchall()\n"
        "plain = duckdb.connect()\n"
        "llmsql.register(plain, model=FakeModel(lambda p, f, o: 'x'))\n"
        "plain.execute(\"SELECT llm('p', 'a')\").fetchall()\n" + close
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
