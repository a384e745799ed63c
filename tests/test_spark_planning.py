"""Planned statements and DataFrames in Spark: DuckDB's answers, each distinct surviving tuple asked once in all."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlglot
from sqlglot import exp

import llmsql
from llmsql import CallError, ClosedError, LlmsqlError, QueryError, RowError
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from spark_session import frame_of, local_session

import llmsql.spark
from llmsql.spark import llm, llm_classify, llm_filter, where_llm, with_llm
from llmsql.spark.kept_frames import kept_frames, sweep
from llmsql.spark.registration import registration_of
from llmsql.spark.requirements import check_java, pyspark_version
from llmsql.spark.session import PlanningSession

pytestmark = pytest.mark.spark

# The batches in which filters are asked have other sizes in Spark.
SWITCHES = {"order_filters": False, "early_stop": False}
FIXTURES = Path(__file__).parent / "fixtures" / "planner"
# What the model of the fixtures may be asked is theirs to say; here every statement runs in both engines.
STATEMENTS = (
    "select_list: two fields, one of them NULL at times",
    "select_list: all fields NULL means NULL and no call",
    "select_list: struct column as fields",
    "select_list: numbers, dates and booleans as fields",
    "select_list: a prompt from a column",
    "select_list: a call inside a call",
    "select_list: options",
    "select_list: stars as fields",
    "select_list: an empty table",
    "where: another call for the rows that are left",
    "where: OR with a cheap predicate",
    "from: a call over a recursive CTE",
    "from: a self join",
    "from: unnest in FROM",
    "grouping: GROUP BY the alias of an answer",
    "limit: ORDER BY a position, LIMIT and OFFSET",
)


def answer(prompt, fields, options):
    """A pure function of the values, whatever their names and order; some rows fail."""
    if "fail" in fields.values():
        raise ValueError("cannot be answered")
    code = zlib.crc32(repr((prompt, sorted(map(str, fields.values())))).encode())
    if options["function"] == "llm_filter":
        return "Yes" if code % 3 else "No"
    return options["choices"][code % len(options["choices"])] if "choices" in options else f"{prompt[:9]} {code % 1000}"


@pytest.fixture(scope="module")
def con():
    with llmsql.connect(model=FakeModel(answer), **SWITCHES) as session:
        session.execute((FIXTURES / "setup.sql").read_text(encoding="utf-8"))
        yield session


@pytest.fixture(scope="module")
def spark(con, tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    os.environ.pop("PYSPARK_PYTHON", None)
    session = local_session(tmp_path_factory.mktemp("warehouse"))
    for name in ("products", "reviews", "empty_reviews", "blanks", "nested", "good_reviews"):
        frame_of(session, con.sql(f"FROM {name}").to_arrow_table()).createOrReplaceTempView(name)
    yield llmsql.spark.register(session, model=FakeModel(answer), **SWITCHES)
    session.stop()


def statement(name):
    file, title = name.split(": ", 1)
    text = (FIXTURES / f"{file}.sql").read_text(encoding="utf-8")
    found = re.search(rf"^-- name: {re.escape(title)}\n(?:--.*\n)*([^;]+);", text, re.MULTILINE)
    assert found is not None, f"there is no fixture {name}"
    return found[1]


def in_spark(sql):
    """The statement in Spark's words."""
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    for option in list(tree.find_all(exp.PropertyEQ)):
        if isinstance(option.parent, exp.Anonymous):
            option.replace(exp.Kwarg(this=exp.var(option.this.name), expression=option.expression))
    return tree.sql(dialect="spark")


def rows(frame):
    return sorted(
        (tuple(v.asDict(True) if isinstance(v, Row) else v for v in row) for row in frame.collect()), key=repr
    )


def asked(spark):
    return llmsql.spark.statistics(spark).model_calls


class TestStatements:
    @pytest.mark.spark_cluster
    @pytest.mark.parametrize("name", STATEMENTS)
    def test_same_rows_and_calls_as_duckdb(self, spark, con, name):
        if "recursive" in name and pyspark_version() < (4, 1):
            pytest.skip("Spark has recursive CTEs from 4.1 on")
        sql = statement(name)
        wanted = sorted(con.sql(sql).fetchall(), key=repr)
        calls = con.last_query.model_calls
        before = asked(spark)
        frame = spark.sql(in_spark(sql))
        assert rows(frame) == wanted
        assert spark.last_query.decisions == [], "it was not planned"
        assert spark.last_query.model_calls == calls
        assert asked(spark) - before == calls

    def test_nothing_is_asked_again(self, spark):
        before = asked(spark)
        frame = spark.sql(
            "WITH judged AS (SELECT review_id, llm('Summarise', body) AS text FROM reviews WHERE rating = 1) "
            "SELECT a.review_id, a.text FROM judged a JOIN judged b ON a.text = b.text ORDER BY a.text, a.review_id"
        )
        first = frame.collect()
        assert frame.collect() == first
        assert frame.alias("x").join(frame.alias("y"), F.col("x.text") == F.col("y.text")).count() > len(first)
        assert frame.orderBy("review_id").first() == min(first, key=lambda row: row.review_id)
        (count,) = spark.sql("SELECT count(DISTINCT body) FROM reviews WHERE rating = 1").first()
        assert spark.last_query.model_calls == asked(spark) - before == count

    def test_equals_the_plain_functions(self, spark):
        sql = "SELECT review_id, llm('Say', body, author) AS text FROM reviews WHERE llm_filter('Is it?', author)"
        assert rows(spark.sql(sql)) == rows(spark.spark.sql(sql))

    def test_subqueries(self, spark):
        sql = (
            "SELECT product_id FROM products p WHERE EXISTS (SELECT 1 FROM reviews r WHERE r.product_id = p.product_id "
            "AND llm_filter('Is it good?', r.author)) AND product_id IN (SELECT product_id FROM reviews WHERE verified)"
        )
        assert rows(spark.sql(sql)) == rows(spark.spark.sql(sql))
        assert spark.last_query.decisions == []

    def test_order_and_limit(self, spark):
        found = spark.sql("SELECT review_id, llm('Say', body) AS text FROM reviews ORDER BY review_id DESC LIMIT 5")
        assert [row.review_id for row in found.collect()] == [119, 118, 117, 116, 115]
        assert spark.last_query.model_calls == 5

    def test_writing(self, spark):
        spark.sql("CREATE TABLE written USING parquet AS SELECT product_id, llm('Say', title) AS text FROM products")
        assert spark.last_query.model_calls == 7
        try:
            assert spark.table("written").filter("text IS NOT NULL").count() == 21
        finally:
            spark.sql("DROP TABLE written")

    def test_what_has_no_calls_is_sparks_own(self, spark):
        known = spark.last_query
        assert spark.sql("SELECT 'llm' AS x, :n AS n", args={"n": 3}).collect() == [Row(x="llm", n=3)]
        assert spark.last_query is known
        assert spark.range(3).count() == 3
        assert "__llmsql" not in str(spark.sql("SHOW TABLES").collect())

    def test_parameters(self, spark):
        found = spark.sql("SELECT llm('Say', title) AS t FROM products WHERE product_id < :most", args={"most": 2})
        assert found.count() == 2
        assert spark.last_query.model_calls == 2

    def test_what_cannot_be_planned_runs_as_functions(self, spark):
        frame = spark.sql("SELECT llm('Say', title) AS t FROM products WHERE product_id < ?", args=[2])
        assert frame.count() == 2

    def test_wrong_statements(self, spark):
        with pytest.raises(CallError, match=r"no option 'max_token'.*line 1, column 8"):
            spark.sql("SELECT llm('Say', title, max_token => 3) FROM products")
        with pytest.raises(CallError, match=r"`nothing` cannot be resolved.*line 1, column 8"):
            spark.sql("SELECT llm('Say', nothing) FROM products")
        with pytest.raises(QueryError, match="`nothing` cannot be resolved"):
            spark.sql("SELECT llm('Say', title) FROM products WHERE nothing > 3")
        with pytest.raises(QueryError, match="GROUP BY"):
            spark.sql("SELECT title, llm_agg('Say', category) FROM products")
        spark.sql("CREATE TABLE here USING parquet AS SELECT 'a' AS x")
        try:
            with pytest.raises(QueryError, match=r"keeps no view with LLM calls, .* CREATE TEMPORARY VIEW"):
                spark.sql("CREATE VIEW kept AS SELECT llm('Say', x) AS t FROM here")
        finally:
            spark.sql("DROP TABLE here")

    def test_after_the_application_has_ended(self, spark):
        ended = replace(registration_of(spark.spark), context=SimpleNamespace(_jsc=None))
        with pytest.raises(ClosedError, match="has ended: start one, and register"):
            PlanningSession(spark.spark, ended).sql("SELECT llm('Say', 'x')")

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            ("llm_classify('Q', title, label => array('a', 'b'))", "llm_classify has no option 'label'; .* 'labels'"),
            ("llm_extract('Q', title, shema => 'STRUCT(a INT)')", "llm_extract has no option 'shema'; .* 'schema'"),
            ("llm('Q', title, retun_type => 'INT')", "llm has no option 'retun_type'; .* 'return_type'"),
            ("llm_agg('Q', title, max_token => 3)", "llm_agg has no option 'max_token'; .* 'max_tokens'"),
            ("llm_filter('Q', title, tokens => 3)", "llm_filter has no option 'tokens'; its"),
        ],
    )
    def test_a_misspelt_option_is_named_with_all_that_there_are(self, spark, call, said):
        sql = f"SELECT {call} FROM products"
        for run in (spark.sql, spark.dry_run, spark.explain, lambda sql: spark.sql(f"EXPLAIN {sql}")):
            with pytest.raises(CallError, match=rf"{said}.* options are: .*model, on_error.*\(line 1, column"):
                run(sql)
        with pytest.raises(CallError, match=said):
            spark.sql(f"UPDATE products SET title = {call}")

    def test_explain(self, spark):
        text = spark.explain("SELECT llm('Say', title) AS t FROM products WHERE price > 3")
        assert "ask llm('Say', title)" in text
        assert "price > 3" in text


class TestErrors:
    SQL = "SELECT id, llm('Say', x{}) AS text FROM VALUES (1, 'fine'), (2, 'fail'), (3, 'fail'), (4, NULL) AS v(id, x)"

    def test_a_failed_row_is_null_with_its_reason(self, spark):
        said = dict(rows(spark.sql(self.SQL.format(""))))
        assert said[1] is not None
        assert (said[2], said[3], said[4]) == (None, None, None)
        (stage,) = spark.last_query.stages
        assert (stage.rows, stage.distinct, stage.asked, stage.failed) == (4, 3, 2, 1)
        assert spark.last_query.errors[0].error == "ValueError: cannot be answered"

    def test_on_error_fail_stops_with_the_values(self, spark):
        with pytest.raises(RowError, match="llm failed: ValueError: cannot be answered; the row: x='fail'"):
            spark.sql(self.SQL.format(", on_error => 'fail'"))


class TestDataFrames:
    def test_same_as_the_column(self, spark):
        frame = spark.table("reviews")
        column = llm_classify("Which of {body} and {author}?", ["x", "y"])
        plain = rows(frame.withColumn("kind", column))
        before = asked(spark)
        planned = frame.transform(with_llm, "kind", column)
        assert rows(planned) == rows(planned.orderBy("kind")) == plain
        assert asked(spark) - before == frame.select("body", "author").distinct().count()
        assert with_llm(planned, "kind", llm("Say", "*")).columns == planned.columns

    def test_filter(self, spark):
        predicate = llm_filter("Is it?", F.struct("author", F.col("rating").alias("stars")), "author")
        kept = spark.table("reviews").transform(where_llm, predicate)
        assert rows(kept) == rows(spark.table("reviews").filter(predicate))
        assert 0 < kept.count() < 120

    def test_rows_that_differ_from_run_to_run(self, spark):
        drawn = spark.range(0, 200, 1, 4).withColumn("body", (F.rand() * 1000).cast("int"))
        assert with_llm(drawn, "said", llm("Say", "body")).filter("said IS NULL").count() == 0

    def test_no_rows(self, spark):
        empty = spark.table("empty_reviews")
        assert with_llm(empty, "said", llm("Say", "body")).collect() == []

    def test_expressions_around_a_call_are_refused(self, spark):
        with pytest.raises(CallError, match="returned itself"):
            with_llm(spark.table("reviews"), "x", F.upper(llm("Say", "body")))
        with pytest.raises(CallError, match="where_llm needs"):
            where_llm(spark.table("reviews"), llm("Say", "body"))
        with pytest.raises(CallError, match="must be a DataFrame, not str"):
            with_llm("reviews", "x", llm("Say", "body"))

    def test_answers_are_given_back_when_nothing_can_read_them(self, spark):
        result = with_llm(spark.table("products"), "said", llm("Say", "title"))
        built = result.filter("product_id < 3")
        (answers,) = kept_frames(spark.spark)._kept[-1][1]
        del result
        for _ in range(5):
            collect_garbage(spark)
            time.sleep(0.5)  # the JVM hears within a second of what Python has let go
        assert answers.storageLevel.useMemory
        before = asked(spark)
        assert built.count() == 3
        assert asked(spark) == before, "what is built on a result holds its answers"
        del built
        wait_until(lambda: collect_garbage(spark) is None and not answers.storageLevel.useMemory)


class TestLongSessions:
    """What a session holds after some statements is what it holds after more of them."""

    STATEMENTS = (
        "SELECT title, llm('Match', title, body) AS t FROM products JOIN reviews USING (product_id) ORDER BY t",
        "WITH said AS (SELECT llm('Say', body) AS t FROM reviews LIMIT 9) SELECT a.t FROM said a JOIN said b USING (t)",
        "SELECT review_id FROM reviews WHERE llm_filter('Good?', body) AND llm_filter('Kind?', author) AND rating > 1",
        "SELECT review_id FROM reviews WHERE llm_filter('Good?', body) LIMIT 3",
        "SELECT llm('Say', 'fail', on_error => 'fail')",
        "SELECT llm('Say', nothing) FROM reviews",
        "EXPLAIN SELECT llm('Say', title) FROM products",
        "SELECT count(*) FROM llm_errors()",
    )

    @pytest.mark.spark_cluster
    def test_nothing_is_left_of_a_statement(self, spark, monkeypatch):
        monkeypatch.setattr("llmsql.spark.desk.KEPT_ACCOUNTS", 1)  # of statements that were stopped
        for _ in range(2):  # the first round fills what is made once
            self._round(spark)
        wait_until(lambda: self._held(spark)["persisted"] == 0)
        before = self._held(spark)
        self._round(spark)
        wait_until(lambda: self._held(spark) == before, lambda: f"{before}\n{self._held(spark)}")

    def _round(self, spark):
        for sql in self.STATEMENTS:
            with contextlib.suppress(LlmsqlError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spark.sql(sql).collect()
        own = SparkSession(spark.sparkContext, spark._jsparkSession)  # as each micro-batch of a stream has one
        with_llm(DataFrame(spark.table("products")._jdf, own), "said", llm("Say", "title")).collect()

    def _held(self, spark):
        registration_of(spark.spark).counters._value.clear()  # of attempts, which are bounded by themselves
        collect_garbage(spark)
        ours = ("llmsql.", "pyspark.", "py4j.java_gateway")
        kinds = Counter(f"{type(one).__module__}.{type(one).__name__}" for one in gc.get_objects())
        return {
            "objects": {kind: number for kind, number in sorted(kinds.items()) if kind.startswith(ours)},
            "kept": len(kept_frames(spark.spark)),
            "persisted": spark.sparkContext._jsc.getPersistentRDDs().size(),
            "views": [row.tableName for row in spark.spark.sql("SHOW TABLES").collect()],
            "threads": threading.active_count(),
        }


def collect_garbage(spark):
    """Have Python and the JVM collect their garbage, and answers given back."""
    gc.collect()
    spark.sparkContext._jvm.System.gc()
    sweep(spark.spark)


def wait_until(done, shown=lambda: "it did not happen"):
    """Wait for what other threads do; a machine may be slow."""
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, shown()
        time.sleep(0.3)
