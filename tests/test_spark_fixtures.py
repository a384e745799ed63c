"""Every statement of `fixtures/planner` that Spark's SQL can express answers in Spark as it does in DuckDB.

Whether Spark can express a statement is asked of Spark, with a plain expression in the place of each call; what it
cannot is counted by Spark's own reason. The rows, the names and kinds of columns, what a statement wrote, and the
number of rows asked are compared. Every 24th statement is part of `make test`, all of them of `make test-spark`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import pytest

import llmsql
from llmsql import LlmsqlError, QueryError
from llmsql.functions import make_call
from llmsql.planner.calls import parse_call
from llmsql.planner.parsing import parse_statement
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

import planner_fixtures
from planner_fixtures import FIXTURES, Fixture, answer, filled_connection, filled_session, rows_of
from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import Row, SparkSession
from spark_fixtures import SPELT, in_spark, statement, without_calls
from spark_session import frame_of, local_session
from sqlglot import exp

import llmsql.spark
from llmsql.spark.catalog import SparkCatalog, duckdb_type, quiet
from llmsql.spark.requirements import check_java
from llmsql.statistics import QueryStatistics

pytestmark = pytest.mark.spark

TABLES = ("products", "reviews", "empty_reviews", "blanks", "odd", "nested", "many", "good_reviews", "mean_ratings")
CHOOSING = re.compile("early_stop|filters")
SAMPLED = 80  # every so many-th is in `make test`
# Statements that Spark can run, and answers otherwise than DuckDB, whatever is asked; and why.
OTHERWISE = {
    "subqueries: a call in a lambda stays in place": "Spark takes no Python function in a lambda",
    "types: a date, its parts and an interval": "a date and an interval of days are a date in Spark",
    "types: a map": "Spark sorts the entries of maps that it groups by, and the model sees them so",
    "types: a timestamp and a time": "sqlglot writes a time as a timestamp",
    "writes: create or replace temporary table": "a temporary table is a view in Spark, computed when it is used",
    "writes: create a table without data": "Spark has no WITH NO DATA",
    "writes: insert of values": "Spark takes DEFAULT in VALUES without subqueries alone, and an error says so",
    "types: VALUES as the statement": "Spark's names for its columns begin with col1, DuckDB's with col0",
    "types: NaN and infinity are values as others": "Spark writes these numbers otherwise as texts",
}
# How many statements Spark's own parser and analyzer refuse, by the class of its error.
REFUSED = {
    "PARSE_SYNTAX_ERROR": 23,
    "UNRESOLVED_COLUMN": 2,
    "UNRESOLVED_ROUTINE": 1,
    "UNSUPPORTED_FEATURE": 27,
    "UNSUPPORTED_SUBQUERY_EXPRESSION_CATEGORY": 2,
}
IN_NUMBERS = {"type": "object", "properties": {"in": {"type": "integer"}}, "required": ["in"]}
INTEGERS = r"\b(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT|UTINYINT|USMALLINT|UINTEGER|UBIGINT)\b"


def params(fixtures: list[Fixture], every: int) -> list:
    slow = [pytest.mark.spark_cluster]
    return [
        pytest.param(fixture, id=fixture.name, marks=[] if number % every == 0 else slow)
        for number, fixture in enumerate(fixtures)
    ]


@pytest.fixture(scope="module")
def con():
    with filled_session() as session:
        yield session


@pytest.fixture(scope="module")
def in_order():
    """DuckDB with filters in the order written, each over all rows that the ones before leave."""
    with filled_session(order_filters=False, early_stop=False) as session:
        yield session


@pytest.fixture(scope="module")
def plain():
    with filled_connection() as connection:
        yield connection


@pytest.fixture(scope="module")
def spark(con, tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(planner_fixtures)  # workers cannot import the tests
    os.environ.pop("PYSPARK_PYTHON", None)
    session = local_session(tmp_path_factory.mktemp("warehouse"))
    for name in TABLES:
        frame_of(session, con.sql(f"FROM {name}").to_arrow_table()).createOrReplaceTempView(name)
    switches = {"infer_types": False, "order_filters": False, "early_stop": False}
    yield llmsql.spark.register(session, model=FakeModel(answer), **switches)
    session.stop()


@pytest.fixture(scope="module")
def choosing(spark):
    """Filters in the order of their cost, and under a LIMIT in batches."""
    return llmsql.spark.register(spark.spark, model=FakeModel(answer), infer_types=False)


def refusal(session: SparkSession, fixture: Fixture) -> str | None:
    """Spark's reason why it cannot run the statement, whatever stands in the place of the calls."""
    sql = without_calls(fixture)
    try:
        prepare(session, fixture)
        with quiet():
            if fixture.first is None:
                session.sql(sql)._jdf.queryExecution().optimizedPlan()
                return None
            if re.match("UPDATE|DELETE|MERGE", sql):  # EXPLAIN does not see what a table cannot do
                session.sql(sql)
                return None
            (plan,) = session.sql("EXPLAIN " + sql).first()
    except PySparkException as problem:
        return re.search(r"\[?([A-Z_]+)", problem.getCondition() or str(problem))[1]
    except Exception as problem:  # Py4J's, of Spark's optimizer
        return re.search(r"\[([A-Z_]+)", str(problem))[1]
    found = re.search(r"Exception: \[([A-Z_]+)", plan)
    return found and found[1]


def prepare(session: SparkSession, fixture: Fixture) -> None:
    """Run what comes before a statement that writes."""
    for name in re.findall(
        r"CREATE [^;]*?TABLE (?:IF NOT EXISTS )?(\S+)", f"{fixture.first};{fixture.sql}".replace('"w w"', "`w w`")
    ):
        session.sql(f"DROP TABLE IF EXISTS {name}")
    for one in (fixture.first or "").split(";"):
        if one.strip() and not one.strip().startswith("DROP"):
            session.sql(in_spark(one.strip()))


def shown(value: object) -> object:
    """A value as both engines show it."""
    if isinstance(value, Row):
        value = value.asDict(True)
    if isinstance(value, dict):
        return sorted((str(key), repr(shown(item))) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, (float, Decimal)):
        return round(float(value), 9)
    if isinstance(value, datetime):
        return value.isoformat().removesuffix("T00:00:00")
    return value.isoformat() if isinstance(value, date) else value


def kind(sql_type: str) -> str:
    """What a type holds, by the name that DuckDB gives it."""
    known = re.sub(INTEGERS, "INTEGER", sql_type.replace('"', ""))
    known = re.sub(r"DECIMAL\(\d+, ?\d+\)|FLOAT", "DOUBLE", known)
    return re.sub(r"ENUM\(.*?\)|JSON|UUID", "VARCHAR", known)


def equal(fixture, session, con, plain, folder) -> QueryStatistics | None:
    """Run a statement in Spark and in DuckDB, and compare; what Spark asked, None where each partition asks."""
    if fixture.name in OTHERWISE:
        pytest.skip(OTHERWISE[fixture.name])
    reason = refusal(session.spark, fixture)
    if reason is not None:
        pytest.skip(f"Spark cannot express it: {reason}")
    if fixture.then is not None:  # Spark's tables have no order
        fixture = replace(fixture, then=fixture.then.replace("rowid, ", ""))
    names, types, rows, left = rows_of(con, fixture)
    frame = session.sql(statement(fixture).replace("'copied'", f"'{folder}'"))
    found = [shown(tuple(row)) for row in frame.collect()]
    asked = session.last_query
    assert not any("not planned" in decision for decision in asked.decisions)
    in_place = "in place, chunk by chunk" in asked.plan
    assert in_place == fixture.in_place or fixture.name in SPELT
    if fixture.first is None:
        columns = [(name.lower(), kind(str(sql_type))) for name, sql_type in zip(names, types)]
        own = [(field.name.lower(), kind(duckdb_type(field.dataType))) for field in frame.schema.fields]
        assert sorted(own) == sorted(columns)
        if own != columns:  # USING puts its column first
            places = [own.index(column) for column in columns]
            found = [[row[place] for place in places] for row in found]
        wanted = [shown(row) for row in rows]
        if not fixture.ordered or "ORDER BY" not in fixture.sql:
            found, wanted = sorted(found, key=repr), sorted(wanted, key=repr)
        whole = re.sub(r" LIMIT \d+( OFFSET \d+)?$", "", fixture.sql)
        if found != wanted and whole != fixture.sql and "ORDER BY" not in whole:  # any rows are right
            every = Counter(repr(shown(row)) for row in con.sql(whole).fetchall())
            assert len(found) == len(wanted)
            assert Counter(map(repr, found)) <= every
        else:
            assert found == wanted
    if fixture.then is not None:
        written = [shown(tuple(row)) for row in session.spark.sql(in_spark(fixture.then)).collect()]
        assert sorted(written, key=repr) == sorted((shown(row) for row in left), key=repr)
    copied = re.match(r"COPY \((.*)\) TO", fixture.sql)
    if copied is not None:
        texts = plain.sql(f"SELECT COLUMNS(*)::VARCHAR FROM ({copied[1]})").fetchall()
        assert sorted(map(repr, map(tuple, session.read.csv(str(folder)).collect()))) == sorted(map(repr, texts))
    return None if in_place else asked


@pytest.mark.parametrize("fixture", params(FIXTURES, SAMPLED))
def test_spark_equals_duckdb(fixture, spark, con, in_order, plain, tmp_path):
    asked = equal(fixture, spark, con, plain, tmp_path)
    if asked is None:
        return
    rows_of(in_order, fixture)
    most = in_order.last_query.model_calls
    if fixture.calls is not None:
        ((calls,),) = plain.sql(fixture.calls).fetchall()
        # A count that depends on the order of filters, or on stopping early, is at most that without.
        assert asked.model_calls == calls or (most != calls and asked.model_calls <= most)
    assert asked.model_calls <= most


@pytest.mark.parametrize("fixture", params([one for one in FIXTURES if CHOOSING.match(one.name)], len(FIXTURES)))
def test_spark_chooses_as_duckdb(fixture, choosing, con, plain, tmp_path):
    asked = equal(fixture, choosing, con, plain, tmp_path)
    if fixture.calls is not None:
        assert asked.model_calls == plain.sql(fixture.calls).fetchall()[0][0]
    if fixture.at_most is not None:
        assert asked.model_calls <= plain.sql(fixture.at_most).fetchall()[0][0]


@pytest.mark.spark_cluster
def test_what_spark_cannot_express(spark):
    refused = Counter(reason for fixture in FIXTURES if (reason := refusal(spark.spark, fixture)) is not None)
    print(refused.most_common())
    assert dict(refused) == REFUSED
    assert len(FIXTURES) - refused.total() - len(OTHERWISE) >= 425


def both(spark, con, sql, in_duckdb=None, **kwargs):
    """The rows of a statement in Spark, which are those of DuckDB, and are asked once."""
    wanted = [shown(row) for row in con.sql(in_duckdb or sql).fetchall()]
    frame = spark.sql(sql, **kwargs)
    found = [shown(tuple(row)) for row in frame.collect()]
    assert spark.last_query.decisions == []
    assert sorted(found, key=repr) == sorted(wanted, key=repr)
    assert spark.last_query.model_calls == con.last_query.model_calls
    return frame


class TestWhatFixturesLack:
    @pytest.mark.parametrize(
        "call",
        [
            "llm_agg('Sum', body ORDER BY review_id DESC)",
            "llm_agg('Sum', author)",
            "llm_agg('Sum', author ORDER BY rating DESC NULLS LAST, verified, review_id)",
            "llm_agg(DISTINCT 'Sum', body, author ORDER BY written NULLS LAST) FILTER (WHERE rating > 2)",
        ],
    )
    def test_llm_agg(self, spark, con, call):
        sql = f"SELECT product_id, {call} AS text FROM reviews WHERE product_id < 5 GROUP BY product_id"
        both(spark, con, sql, sql.replace("author)", "author ORDER BY author)"))  # DuckDB's tables have an order

    @pytest.mark.spark_cluster
    def test_llm_agg_over_a_window_and_in_having(self, spark, con):
        window = "llm_agg('Sum', title ORDER BY product_id) OVER (PARTITION BY category)"
        both(spark, con, f"SELECT product_id, {window} AS text FROM products")
        having = "HAVING llm_agg('Sum', title ORDER BY product_id) > 'Sum 5'"
        both(spark, con, f"SELECT category, count(*) AS n FROM products GROUP BY category {having}")

    def test_llm_agg_of_a_list(self, spark):
        listed = "llm_agg('Sum', sort_array(collect_list(title)))"
        rows = spark.sql(f"SELECT category, {listed} AS text FROM products GROUP BY category")
        wanted = "llm_agg('Sum', title AS rows)"
        assert {tuple(row) for row in rows.collect()} == {
            tuple(row)
            for row in spark.sql(f"SELECT category, {wanted} AS text FROM products GROUP BY category").collect()
        }

    @pytest.mark.spark_cluster
    def test_parameters_by_name_and_by_place(self, spark, con):
        wanted = "SELECT llm('Say', title) AS t FROM products WHERE product_id < 4 AND llm_filter('Is it?', category)"
        sql = wanted.replace("4", "{}").replace("'Is it?'", "{}")
        both(spark, con, sql.format(":most", ":prompt"), wanted, args={"most": 4, "prompt": "Is it?"})
        both(spark, con, sql.format("?", "?"), wanted, args=[4, "Is it?"])

    def test_names_in_any_case_and_backticks(self, spark, con):
        wanted = 'SELECT "a b" AS "A`b", llm(\'Say\', "Ünï", "q""uote") AS Said FROM odd AS "o d" WHERE "a b" > 0'
        sql = (
            "SELECT `A B` AS `A``b`, LLM('Say', `o d`.`Ünï`, `q\"uote`) AS Said FROM ODD AS `o d` WHERE `o d`.`a b` > 0"
        )
        assert both(spark, con, sql, wanted).columns == ["A`b", "Said"]

    @pytest.mark.spark_cluster
    @pytest.mark.parametrize(
        ("sql_type", "said", "wanted"),
        [
            ("INTEGER", "7", 7),
            ("INT", "seven", None),
            ("DOUBLE", "2.5", 2.5),
            ("BOOLEAN", "true", True),
            ("DATE", "2024-02-29", date(2024, 2, 29)),
            ("DECIMAL(6, 2)", "12.5", Decimal("12.50")),
            ("ARRAY<STRING>", '["a", "b"]', ["a", "b"]),
            ("STRUCT<name: STRING, size: INT>", '{"name": "x", "size": 3}', Row(name="x", size=3)),
            ("STRUCT(name VARCHAR, tags VARCHAR[])", '{"name": "x", "tags": []}', Row(name="x", tags=[])),
        ],
    )
    def test_types_of_answers(self, spark, sql_type, said, wanted):
        session = llmsql.spark.register(spark.spark.newSession(), model=FakeModel(lambda *call: said))
        call = f"llm('Which?', v, return_type => '{sql_type}')"
        frame = session.sql(f"SELECT {call} AS x FROM VALUES ('a') AS t(v) WHERE {call} IS NULL OR {call} = {call}")
        assert [row.x for row in frame.collect()] == [wanted]
        assert session.last_query.model_calls == 1

    def test_expressions_that_raise_for_rows_that_are_not_asked(self, spark):
        rows = "(VALUES (1, '5', 0), (2, 'x', 0), (3, '4', 2)) AS t(id, n, zero)"
        item = "element_at(array(id), 4 - id)"
        for argument in ("CAST(n AS INT)", "6 / zero", "6 % zero", "-CAST(n AS INT) + 1", item):
            case = f"CASE WHEN id = 3 THEN llm('Say', coalesce({argument}, 1)) END"
            frame = spark.sql(f"SELECT id, {case} AS text FROM {rows} ORDER BY id")
            assert [row.text is None for row in frame.collect()] == [True, True, False]
            assert spark.last_query.decisions == []
            assert spark.last_query.model_calls == 1

    def test_a_condition_that_raises_after_a_call(self, spark):
        rows = "(VALUES (1, '5'), (2, 'x'), (3, '4')) AS t(id, n)"
        sql = f"SELECT id FROM {rows} WHERE llm_filter('Say', id) IS NOT NULL AND n <> 'x' AND try_cast(n AS INT) > 4"
        assert [tuple(row) for row in spark.sql(sql).collect()] == [(1,)]

    @pytest.mark.spark_cluster
    def test_views_and_functions_of_the_session(self, spark, con):
        spark.sql("CREATE OR REPLACE TEMP VIEW loud AS SELECT review_id, upper(body) AS body FROM reviews")
        spark.sql("CREATE OR REPLACE TEMPORARY FUNCTION twice(x STRING) RETURNS STRING RETURN x || x")
        spark.udf.register("reversed", lambda text: text[::-1])
        wanted = "SELECT llm('Say', upper(body || body), reverse(body)) AS t FROM reviews WHERE review_id < 9"
        sql = "SELECT llm('Say', twice(body), reversed(lower(body))) AS t FROM loud WHERE review_id < 9"
        both(spark, con, sql, wanted)

    @pytest.mark.spark_cluster
    def test_a_view_with_calls(self, spark):
        spark.sql("CREATE OR REPLACE TEMP VIEW judged AS SELECT title, llm('Say', title) AS said FROM products")
        wanted = spark.sql("SELECT title, llm('Say', title) AS said FROM products").collect()
        assert sorted(spark.table("judged").collect()) == sorted(wanted)

    def test_a_call_that_sees_elements_says_what_to_do(self, spark):
        with pytest.raises(QueryError, match="no LLM call on the elements of a list"):
            spark.sql("SELECT id, transform(tags, x -> llm('Say', x)) AS said FROM nested")

    @pytest.mark.parametrize(
        ("written", "wanted"),
        [
            ("llm_classify('Q', body, labels => array('a', 'b'))", make_call("llm_classify", "Q", ["a", "b"])),
            (
                "llm_extract('Q', schema => 'STRUCT<n: INT>', body, max_tokens => 9, system => 'Be brief')",
                make_call("llm_extract", "Q", "STRUCT(n INTEGER)", {"max_tokens": 9, "system": "Be brief"}),
            ),
            (
                "llm('Q', body, schema => named_struct('type', 'object', 'properties', "
                "map('in', struct('integer' AS type)), 'required', array('in')), temperature => 0.5D, seed => 3)",
                make_call("llm", "Q", None, {"schema": IN_NUMBERS, "temperature": 0.5, "seed": 3}),
            ),
            (
                "llm('Q', body, choices => array('x', 'y'), unordered => array(), reorder => false, model := 'other')",
                make_call(
                    "llm", "Q", None, {"choices": ["x", "y"], "unordered": [], "reorder": False, "model": "other"}
                ),
            ),
            ("llm('Q', body, regex => r'\\d+')", make_call("llm", "Q", None, {"regex": r"\d+"})),
            ("llm_score('Q', body, min => -1, max => 4.5)", make_call("llm_score", "Q", None, {"min": -1, "max": 4.5})),
            (
                "llm_agg('Q', body, max_tokens => 7, on_error => 'fail')",
                make_call("llm_agg", "Q", None, {"max_tokens": 7, "on_error": "fail"}),
            ),
        ],
    )
    def test_named_arguments(self, spark, written, wanted):
        call = parse_statement(f"SELECT {written}", "spark").find(exp.Anonymous)
        assert parse_call(call, SparkCatalog(spark.spark, spark.spark.sql, {}), lambda star: []).call == wanted

    def test_labels_by_name_and_a_field_by_its_place_in_the_prompt(self, spark, con):
        wanted = "SELECT title, llm_classify('Is {title} new?', ['a', 'b'], title) AS x FROM products"
        both(
            spark,
            con,
            "SELECT title, llm_classify('Is {title} new?', labels => array('a', 'b')) AS x FROM products",
            wanted,
        )

    @pytest.mark.spark_cluster
    def test_maps_are_compared_by_their_entries(self, spark):
        half = "SELECT id, llm('S', map('b', id % 2, 'a', id % 3), max_tokens => 7) AS x FROM range(9)"
        frame = spark.sql(f"{half} UNION ALL {half.replace('range(9)', 'range(12)')}")
        assert frame.filter("x IS NULL").count() == 0
        assert (spark.last_query.decisions, spark.last_query.model_calls) == ([], 6)
        with pytest.raises(
            QueryError, match=r"cannot compare values of the type array<map<string,bigint>>: give to_json"
        ):
            spark.sql("SELECT llm('S', array(map('b', id)), max_tokens => 7) AS x FROM range(3)")

    def test_what_is_not_planned_takes_no_options(self, spark):
        with pytest.raises(QueryError, match=r"options \(max_tokens\) are for statements that are planned"):
            spark.sql("SELECT llm('S', title, max_tokens => 7) FROM {frame}", frame=spark.table("products"))
        rows = spark.sql("SELECT llm('S', title) FROM {frame}", frame=spark.table("products")).collect()
        assert len(rows) == 21
        assert spark.last_query.decisions == ["not planned, the calls run as UDFs: it has DataFrames in it"]

    def test_files_of_answers_are_planned(self, spark, tmp_path):
        query = "SELECT title, llm('S', title) AS x FROM products"
        written = f"INSERT OVERWRITE DIRECTORY '{tmp_path / 'with from'}' USING json {query}"
        assert len(spark.explain(written).splitlines()) == len(spark.explain(query).splitlines())
        assert "InsertIntoDataSourceDirCommand" in spark.sql(f"EXPLAIN {written}").first()[0]
        assert not (tmp_path / "with from").exists()

    def test_what_only_spark_can_parse(self, spark):
        """Its own reason is shown where it cannot either."""
        with pytest.raises(QueryError, match="PARSE_SYNTAX_ERROR"):
            spark.sql("SELECT llm('S', title) FROM (products")
        matched = "WHEN MATCHED AND llm_filter('Is it?', s.title) THEN UPDATE SET *"
        with pytest.raises(QueryError, match=r"^\[TABLE_OR_VIEW_NOT_FOUND"):
            spark.sql(f"MERGE WITH SCHEMA EVOLUTION INTO nix t USING products s ON s.product_id = t.id {matched}")

    def test_update_and_delete_are_left_to_spark(self, spark):
        spark.sql("CREATE TABLE written USING parquet AS SELECT product_id, title FROM products WHERE product_id < 3")
        try:
            for sql in (
                "UPDATE written SET title = llm('Say', title, max_tokens => 7)",
                "DELETE FROM written WHERE llm_filter('Is it?', title, system => 'Be brief')",
            ):
                with pytest.raises(QueryError, match=r"Spark cannot run (UPDATE|DELETE) on this table"):
                    spark.sql(sql)
                (decision,) = spark.last_query.decisions
                assert "is run by Spark itself: its calls run as UDFs" in decision
                for plan in (spark.explain(sql), spark.sql(f"EXPLAIN {sql}").first()[0]):
                    assert "is run by the SQL engine itself" in plan
            with pytest.raises(QueryError, match=r"^\[UNRESOLVED_COLUMN"):
                spark.sql("UPDATE written SET title = llm('Say', nix)")
        finally:
            spark.sql("DROP TABLE written")
