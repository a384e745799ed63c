"""The part of the cluster's tests that `make test` runs: a master and two workers answer as DuckDB does."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

import llmsql
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from spark_cluster import Notes, cluster_of_two
from spark_cluster_models import Noting
from spark_session import frame_of

import llmsql.spark
from llmsql.spark import llm, with_llm

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
]

# Three texts of five rows each, the rest once.
REVIEWS = pa.table(
    {
        "id": range(40),
        "text": [f"often {n % 3}" if n < 15 else None if n == 20 else f"once {n}" for n in range(40)],
        "stars": [n % 5 for n in range(40)],
    }
)
TWICE = (
    "WITH said AS (SELECT id, llm('Shout', text) AS loud FROM reviews WHERE stars < 4) SELECT a.id, a.loud, b.loud "
    "FROM said a JOIN said b ON a.id = b.id + 5 ORDER BY a.loud NULLS LAST, a.id"
)
FILTERED = (
    "SELECT stars, count(*) FROM reviews WHERE stars > 1 AND llm_filter('Is it?', text) GROUP BY stars ORDER BY stars"
)


def test_two_workers_answer_as_duckdb_does(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    notes, wanted = Notes(tmp_path / "spark"), Notes(tmp_path / "duckdb")
    with cluster_of_two(folder, cores=1) as cluster, closing(llmsql.connect(model=noting(wanted))) as con:
        con.register("reviews", REVIEWS)
        with cluster.application({"spark.scheduler.minRegisteredResourcesRatio": 1}) as spark:
            planned = llmsql.spark.register(spark, model=noting(notes))
            reviews = frame_of(spark, REVIEWS)
            reviews.createOrReplaceTempView("reviews")
            for sql in (TWICE, FILTERED):
                found, known = planned.sql(sql), con.sql(sql).fetchall()
                assert [tuple(row) for row in found.collect()] == known
                assert found.count() == len(known), "a second action"
                assert notes.asked() == wanted.asked()
                assert planned.last_query.model_calls == con.last_query.model_calls > 0
            answered = with_llm(reviews, "loud", llm("Shout", "text")).select("id", "loud")
            known = con.sql("SELECT id, llm('Shout', text) FROM reviews ORDER BY id").fetchall()
            assert sorted(map(tuple, answered.collect())) == known
            assert notes.asked() == wanted.asked()
            assert len({pid for text in notes.asked() for pid in notes.who(text)}) > 1, "both workers asked"


def noting(notes):
    return FakeModel(Noting(str(notes.path)))
