"""How llmsql and a model get to Spark's workers, streams, and the example."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import util
from pathlib import Path
from unittest import mock

import pandas as pd
import pyarrow as pa
import pytest

import llmsql
from llmsql import CallError, LlmsqlError, ModelError
from llmsql.demo import MODEL_FOLDER
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from pyspark.sql import functions as F
from spark_session import local_session

import llmsql.spark
from llmsql.spark import llm, llm_extract, llm_filter, with_llm
from llmsql.spark.model_files import BROUGHT, local_name, portable_name
from llmsql.spark.pandas_batches import arrow_columns
from llmsql.spark.requirements import check_java

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parent.parent


def describe(prompt, fields, options):
    """A pure function of all that a model is given."""
    if options["function"] == "llm_filter":
        return "Yes" if len(str(fields)) % 2 else "No"
    return f"{prompt}|" + "|".join(f"{name}={value!r}" for name, value in sorted(fields.items()))


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    with mock.patch.dict(os.environ, LLMSQL_RUNTIME_DIR=str(tmp_path_factory.mktemp("run") / "d")):
        os.environ.pop("PYSPARK_PYTHON", None)
        session = local_session(tmp_path_factory.mktemp("warehouse"))
        yield llmsql.spark.register(session, model=FakeModel(describe))
        session.stop()


class TestStreams:
    @pytest.fixture
    def stream(self, spark, tmp_path):
        folder = tmp_path / "arriving"
        for number in range(2):
            spark.range(3).selectExpr(f"'file {number}' AS title", "id").coalesce(1).write.parquet(
                str(folder), mode="append"
            )
        frame = spark.readStream.schema("title STRING, id BIGINT").option("maxFilesPerTrigger", 1)
        return frame.parquet(str(folder)), str(tmp_path / "checkpoint")

    def run(self, writer, checkpoint):
        query = writer.option("checkpointLocation", checkpoint).trigger(availableNow=True).start()
        try:
            assert query.awaitTermination(200)
        finally:
            query.stop()

    def test_a_function_in_a_micro_batch_query(self, spark, stream):
        llmsql.spark.register(spark, model=FakeModel(describe))
        frame, checkpoint = stream
        asked = frame.select("id", llm("Say", "title").alias("said"))
        self.run(asked.writeStream.format("memory").queryName("said"), checkpoint)
        found = [tuple(row) for row in spark.table("said").collect()]
        assert sorted(found) == [(n, f"Say|title='file {part}'") for n in range(3) for part in range(2)]

    @pytest.mark.spark_cluster
    def test_planned_in_each_micro_batch(self, spark, stream):
        llmsql.spark.register(spark, model=FakeModel(describe))
        frame, checkpoint = stream
        found, asked = [], []

        def answer(batch, number):
            said = with_llm(batch, "said", llm("Say", "title"))
            found.extend(tuple(row) for row in said.select("id", "said").collect())
            asked.append(llmsql.spark.statistics(spark).model_calls)

        self.run(frame.writeStream.foreachBatch(answer), checkpoint)
        assert sorted(found) == [(n, f"Say|title='file {part}'") for n in range(3) for part in range(2)]
        assert asked == [1, 2], "equal titles of a micro-batch are asked once"

    def test_a_stream_itself_is_not_planned(self, spark, stream):
        frame, _ = stream
        with pytest.raises(CallError, match="a stream has no end: use the function as a column, or foreachBatch"):
            with_llm(frame, "said", llm("Say", "title"))
        frame.createOrReplaceTempView("arriving")
        assert spark.sql("SELECT llm('Say', struct(title)) AS said FROM arriving").isStreaming
        assert "not planned" in spark.last_query.decisions[-1]


class TestModelFolders:
    @pytest.mark.spark_cluster
    def test_an_archive_that_spark_brings(self, spark, tmp_path):
        archive = shutil.make_archive(str(tmp_path / "model"), "zip", MODEL_FOLDER)
        spark.sparkContext.addArchive(archive + "#carried")
        session = llmsql.spark.register(spark, model="carried", cache=False, engine_linger=1)
        frame = spark.range(2).select(llm_filter("Is it?", "id").alias("own"))
        assert {row.own for row in frame.collect()} <= {True, False}
        assert spark.range(2).select(llm("Is it?", "id", choices=["a", "b"], model="carried")).count() == 2
        said = session.sql("SELECT llm_filter('Is it?', id) AS own FROM range(2)").collect()
        assert {row.own for row in said} <= {True, False}

    def test_names(self, spark, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert portable_name("demo") == "demo"
        assert portable_name("owner/model") == "owner/model"
        (tmp_path / "folder").mkdir()
        with pytest.raises(ModelError, match=r"folder: there is no config\.json in it"):
            portable_name("folder")
        assert local_name("owner/model") == "owner/model"
        with pytest.raises(ModelError, match=r"there is no such folder on .*: put it at the same path on every node"):
            local_name(str(tmp_path / "elsewhere"))
        with pytest.raises(ModelError, match="model 'lost': Spark has brought no such folder to"):
            local_name(BROUGHT + "lost")


class TestPandas:
    """What UDFs get before Spark 4.1."""

    def test_types_of_the_fields_are_kept(self):
        fields = pd.DataFrame(
            {"n": [3.0, None], "t": pd.to_datetime(["2024-01-02 03:04:05", None]), "m": [{"a": 1}, None]}
        )
        told = pd.Series(["struct<n:bigint,t:timestamp,m:map<string,int>>|Europe/Berlin"] * 2)
        (struct,) = arrow_columns((fields, told), True)
        kind = pa.struct(
            [("n", pa.int64()), ("t", pa.timestamp("us", "Europe/Berlin")), ("m", pa.map_(pa.string(), pa.int32()))]
        )
        assert struct.type == kind
        first, second = struct.to_pylist()
        assert (first["n"], first["m"], first["t"].isoformat()) == (3, [("a", 1)], "2024-01-02T03:04:05+01:00")
        assert second == {"n": None, "t": None, "m": None}

    def test_types_that_cannot_be_told_are_those_of_the_values(self):
        fields = pd.DataFrame({"a b,c:<": [3, 4]})
        (struct,) = arrow_columns((fields, pd.Series(["struct<a b,c:<:int>|UTC"] * 2)), True)
        assert struct.to_pylist() == [{"a b,c:<": 3}, {"a b,c:<": 4}]
        assert arrow_columns((pd.Series(["x"]), pd.Series([[1, 2]])), False)[1].to_pylist() == [[1, 2]]

    def test_kinds_of_fields_and_answers(self, spark):
        llmsql.spark.register(
            spark, model=FakeModel(lambda prompt, fields, options: '{"a": 1}' if fields["n"] else "no")
        )
        frame = spark.sql("SELECT * FROM VALUES (1), (NULL), (0) AS v(n)").coalesce(1)
        column = llm_extract("Who?", "STRUCT(a INTEGER)", "n", F.lit("x").alias("x"))
        assert [row[0] and row[0].asDict() for row in frame.select(column).collect()] == [{"a": 1}, None, None]
        llmsql.spark.register(spark, model=FakeModel(describe))
        sql = """SELECT CAST(n AS INT) AS i, n / 2 AS h, DATE'2024-01-02' AS d, CAST(1.50 AS DECIMAL(5, 2)) AS c,
        TIMESTAMP_NTZ'2024-01-02 03:04:05' AS t, array(1, n) AS l, map('k', n) AS m FROM VALUES (1), (NULL) AS v(n)"""
        spark.sql(sql).createOrReplaceTempView("kinds")
        kinds = spark.table("kinds")
        with pytest.raises(CallError, match="field 'm' is a map, which Spark cannot compare: give to_json"):
            with_llm(kinds, "said", llm("Say", "*"))
        assert "Say|m=[('k', None)]" in {row[0] for row in kinds.select(llm("Say", "m")).collect()}
        kinds = kinds.drop("m")
        planned = with_llm(kinds, "said", llm("Say", "*")).select("said").collect()
        assert sorted(planned) == sorted(kinds.select(llm("Say", "*").alias("said")).collect())


def test_example(capsys, monkeypatch):
    spec = util.spec_from_file_location("spark_reviews", ROOT / "examples" / "spark_reviews.py")
    example = util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(["--rows", "40"])
    said = capsys.readouterr().out
    assert "complaints" in said
    assert "about|count" in said.replace(" ", "")
    assert "llm_filter" in said
