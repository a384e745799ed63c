"""Random statements: Spark planned = DuckDB planned = DuckDB in place, and no more rows asked in Spark.

Some run in Spark with their calls in place, too, and some on Spark's workers. `make fuzz` runs hundreds of them;
LLMSQL_FUZZ_SEED and LLMSQL_FUZZ_STATEMENTS choose others, and more.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

import llmsql
from llmsql import LlmsqlError
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

import typed_fuzz
from duckdb_faults import without_suspects
from pyspark import cloudpickle
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType
from spark_fixtures import in_spark, in_spark_without_calls
from spark_session import frame_of, local_session
from test_spark_fixtures import shown
from typed_fuzz import TABLES, TypedStatements

import llmsql.spark
from llmsql.arguments import fields_table
from llmsql.operator import evaluate
from llmsql.spark import PlanningSession, plan_runner
from llmsql.spark.catalog import quiet
from llmsql.spark.requirements import check_java
from llmsql.spark.stage_function import COUNT, VALUE

FIRST_SEED = int(os.environ.get("LLMSQL_FUZZ_SEED", "1000"))
STATEMENTS = int(os.environ.get("LLMSQL_FUZZ_STATEMENTS", "200"))
ON_WORKERS, IN_PLACE = 16, 16  # so many-th statements are asked on Spark's workers, and run in place in Spark
IS_IN_PLACE = "in place, chunk by chunk"
NO_UDF = "PYTHON_UDF_IN_ON_CLAUSE"  # Spark makes such joins of subqueries, too


@dataclass(frozen=True)
class Engines:
    """Where a statement runs; the settings are the same in all."""

    spark: PlanningSession
    spark_in_place: PlanningSession
    duckdb: llmsql.Session
    duckdb_in_place: llmsql.Session


@contextmanager
def engines(warehouse: Path) -> Iterator[Engines]:
    cloudpickle.register_pickle_by_value(typed_fuzz)  # workers cannot import the tests
    os.environ.pop("PYSPARK_PYTHON", None)
    switches = {"infer_types": False, "order_filters": False, "early_stop": False}
    with ExitStack() as stack:
        duckdbs, sparks = [], []
        for plan in (True, False):
            session = stack.enter_context(llmsql.connect(model=FakeModel(typed_fuzz.reply), plan=plan, **switches))
            session.execute(typed_fuzz.SETUP)
            duckdbs.append(session)
        first = local_session(warehouse)
        stack.callback(first.stop)
        for spark, plan in ((first, True), (first.newSession(), False)):
            for name in TABLES:
                frame_of(spark, duckdbs[0].sql(f"FROM {name}").to_arrow_table()).createOrReplaceTempView(name)
            sparks.append(llmsql.spark.register(spark, model=FakeModel(typed_fuzz.reply), plan=plan, **switches))
        yield Engines(*sparks, *duckdbs)


def ask_on_driver(asked, stage, registration, statistics, running, frames) -> DataFrame:
    """As `llmsql.spark.asking.ask`, in one job: the tuples come to the driver, which asks."""
    running.check()
    table = asked.select(*stage.columns, COUNT).coalesce(1).toArrow().combine_chunks()
    statistics.rows += sum(table.column(COUNT).to_pylist())
    statistics.distinct += table.num_rows
    arguments = table.select(list(stage.columns))
    prompts, columns = (
        (arguments.column(0), arguments.columns[1:]) if stage.has_prompt_column else (None, table.columns)
    )
    fields = fields_table(columns[: len(stage.fields)], list(stage.fields))
    values = evaluate(stage.call, fields, registration.model, registration.settings, statistics, prompts=prompts)
    value = StructField(VALUE, from_arrow_type(values.type, prefer_timestamp_ntz=True))
    schema = StructType([*(asked.schema[column] for column in stage.columns), value])
    return asked.sparkSession.createDataFrame(arguments.append_column(VALUE, values), schema)


def in_duckdb(session: llmsql.Session, sql: str) -> list[object] | str:
    """The rows, or the error."""
    try:
        return [shown(row) for row in session.execute(sql).fetchall()]
    except (duckdb.Error, LlmsqlError) as problem:
        return f"{type(problem).__name__}: {problem}"


def in_order(rows: list[object], is_ordered: bool) -> list[object]:
    return rows if is_ordered else sorted(rows, key=repr)


def check(engines: Engines, seed: int) -> str:
    """What became of the statement of this seed."""
    statements = TypedStatements(seed)
    sql = statements.statement()
    with pytest.MonkeyPatch.context() as patch:
        if seed % ON_WORKERS:
            patch.setattr(plan_runner, "ask", ask_on_driver)
        for name, value in {"ansi.enabled": seed % 3 > 0, "adaptive.enabled": seed % 5 == 0}.items():
            engines.spark.conf.set(f"spark.sql.{name}", str(value).lower())
        return check_statement(engines, sql, statements.is_ordered, f"seed {seed}", in_place=seed % IN_PLACE == 1)


def check_statement(engines: Engines, sql: str, is_ordered: bool, name: str, *, in_place: bool = False) -> str:
    wanted = in_duckdb(engines.duckdb_in_place, sql)
    if isinstance(wanted, str):
        return "DuckDB refuses it"
    found = in_duckdb(engines.duckdb, sql)
    if found != wanted and not (not isinstance(found, str) and sorted(found, key=repr) == sorted(wanted, key=repr)):
        with without_suspects((engines.duckdb, engines.duckdb_in_place)):
            found, wanted = in_duckdb(engines.duckdb, sql), in_duckdb(engines.duckdb_in_place, sql)
    assert isinstance(found, list), f"{name}: DuckDB planned: {sql}\n{found}"
    wanted = in_order(wanted, is_ordered)
    assert in_order(found, is_ordered) == wanted, f"{name}: DuckDB planned: {sql}"
    asked = engines.duckdb.last_query
    said = in_spark(sql)
    try:
        rows = [shown(tuple(row)) for row in engines.spark.sql(said).collect()]
    except Exception as problem:
        if not can_say(engines, sql):
            return "Spark cannot say it"
        if IS_IN_PLACE in asked.plan and NO_UDF in str(problem):
            return "in place, where Spark takes no UDF"
        raise AssertionError(f"{name}: {said}\n{type(problem).__name__}: {problem}") from problem
    spark_asked = engines.spark.last_query
    if in_order(rows, is_ordered) != wanted:
        lost, more = ([row for row in one if row not in other][:4] for one, other in ((wanted, rows), (rows, wanted)))
        raise AssertionError(f"{name}: {said}\nDuckDB: {lost}\nSpark: {more}")
    assert not spark_asked.decisions, f"{name}: {said}\n{spark_asked.decisions}"
    if IS_IN_PLACE in asked.plan:
        return "in place"
    assert IS_IN_PLACE not in spark_asked.plan, f"{name}: {said}\n{spark_asked.plan}"
    calls = (spark_asked.model_calls, asked.model_calls)
    assert calls[0] <= calls[1], f"{name}: {said}\n{calls} rows asked"
    if in_place:
        return in_place_equal(engines, said, wanted, is_ordered, name)
    return "equal"


def in_place_equal(engines: Engines, said: str, wanted: list[object], is_ordered: bool, name: str) -> str:
    try:
        rows = [shown(tuple(row)) for row in engines.spark_in_place.sql(said).collect()]
    except Exception as problem:
        text = str(problem)
        return "equal, refused in place: " + (re.findall(r"\[([A-Z_]{5,})", text) or [text[:100]])[0]
    assert in_order(rows, is_ordered) == wanted, f"{name}: in place in Spark: {said}"
    return "equal, in place too"


def can_say(engines: Engines, sql: str) -> bool:
    """Whether Spark's SQL has such a statement, whatever stands in the place of the calls."""
    try:
        with quiet():
            engines.spark.spark.sql(in_spark_without_calls(sql)).collect()
    except Exception:  # also Py4J's
        return False
    return True


@pytest.fixture(scope="module")
def all_engines(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    with engines(tmp_path_factory.mktemp("warehouse")) as found:
        yield found


@pytest.mark.spark
@pytest.mark.parametrize("seed", range(1, 4))
def test_random_statements(all_engines, seed):
    check(all_engines, seed)


@pytest.mark.fuzz  # and not `spark`, whose tests `make test-spark` runs
@pytest.mark.timeout(7200)
def test_many_random_statements(all_engines):
    found = Counter(check(all_engines, seed) for seed in range(FIRST_SEED, FIRST_SEED + STATEMENTS))
    print(found)
    assert found["Spark cannot say it"] <= 0.1 * STATEMENTS
    assert found["equal"] >= 0.5 * STATEMENTS
