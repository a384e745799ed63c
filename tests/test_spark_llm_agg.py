"""llm_agg in Spark: a Column for groups, and in SQL a function of a list."""

from __future__ import annotations

import os
import sys
from unittest import mock

import pytest

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from pyspark.sql import functions as F
from spark_session import local_session

import llmsql.spark
from llmsql.errors import CallError, LlmsqlError
from llmsql.spark import check_java, llm_agg
from llmsql.testing import FakeModel

pytestmark = pytest.mark.spark

ROWS = [(1, "b", 3, None), (1, "a", 1, "x"), (2, "d", 2, None), (1, "c", 2, None), (3, None, 1, None)]


def listed(prompt, fields, options):
    ((name, items),) = fields.items()
    return name + ":" + "|".join("/".join(map(str, i.values())) if isinstance(i, dict) else str(i) for i in items)


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with mock.patch.dict(os.environ, LLMSQL_RUNTIME_DIR=str(tmp_path_factory.mktemp("run") / "d")):
        os.environ.pop("PYSPARK_PYTHON", None)
        session = local_session(tmp_path_factory.mktemp("warehouse"))
        yield llmsql.spark.register(session, model=FakeModel(listed, context=30))
        session.stop()


def test_groups(spark):
    frame = spark.createDataFrame(ROWS, "k INT, s STRING, n INT, z STRING").repartition(3)
    asked = frame.groupBy("k").agg(
        llm_agg("Sum", "s").alias("by_value"),
        llm_agg("Sum", "s", order_by=[-F.col("n")]).alias("ordered"),
        llm_agg("Sum", "s", "z", order_by=["n"]).alias("several"),
        F.count("*").alias("rows"),
    )
    assert [tuple(row) for row in asked.orderBy("k").collect()] == [
        (1, "s:a|b|c", "s:b|c|a", "partial_answers:rows:a/x|c|rows:b", 3),
        (2, "s:d", "s:d", "rows:d", 1),
        (3, None, None, None, 1),
    ]


def test_sql_takes_a_list(spark):
    spark.createDataFrame(ROWS, "k INT, s STRING, n INT, z STRING").createOrReplaceTempView("grouped")
    sql = "SELECT k, llm_agg('Sum', sort_array(collect_list(named_struct('s', s)))) AS a FROM grouped GROUP BY k"
    found = sorted((row["k"], row["a"]) for row in spark.sql(sql).collect())
    assert found == [(1, "rows:a|b|c"), (2, "rows:d"), (3, None)]


def test_mistakes_show_at_once(spark):
    with pytest.raises(CallError, match="no field to ask about"):
        llm_agg("Sum")
    with pytest.raises(CallError, match="no option 'unordered'"):
        llm_agg("Sum", "s", unordered=["s"])
