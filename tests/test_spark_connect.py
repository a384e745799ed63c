"""Spark Connect: functions, planned DataFrames and clear errors where there is no JVM beside the session.

Needs `pip install 'llmsql[connect]'`, and a process of its own, in which nothing has started a JVM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")
for module in ("grpc", "grpc_status", "google.rpc"):
    pytest.importorskip(module, reason="Spark Connect needs more packages: pip install 'llmsql[connect]'")

pytestmark = [pytest.mark.spark, pytest.mark.spark_cluster]


def describe(prompt, fields, options):
    """A pure function of all that a model is given."""
    seen = f"{prompt}|" + "|".join(f"{name}={value!r}" for name, value in sorted(fields.items()))
    if options["function"] == "llm_filter":
        return "Yes" if zlib.crc32(seen.encode()) % 2 else "No"
    return seen + str(options.get("max_tokens", ""))


def main(notes: str) -> None:
    from pyspark import cloudpickle
    from pyspark.sql import SparkSession

    import llmsql.spark
    from llmsql import CallError, LlmsqlError
    from llmsql.spark import llm, llm_filter, where_llm, with_llm
    from llmsql.testing import FakeModel

    def noted(prompt, fields, options):
        with open(notes, "a") as lines:
            lines.write("asked\n")
        return describe(prompt, fields, options)

    def asked():
        return len(Path(notes).read_text().splitlines()) if Path(notes).exists() else 0

    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    builder = SparkSession.builder.remote("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.memory", "512m")
    builder = builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    connect = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    spark = llmsql.spark.register(connect, model=FakeModel(noted))
    frame = spark.range(0, 12, 1, 2).selectExpr("id", "concat('n', id % 3) AS title")
    frame.createOrReplaceTempView("t")
    wanted = sorted((n, f"Say|title='n{n % 3}'") for n in range(12))

    def rows(found):
        return sorted(tuple(row) for row in found.collect())

    assert rows(frame.select("id", llm("Say", "title").alias("said"))) == wanted
    assert rows(connect.sql("SELECT id, llm('Say', struct(title)) FROM t")) == wanted
    assert rows(spark.sql("SELECT id, llm('Say', title) AS said FROM t")) == wanted
    found = spark.sql("SELECT DISTINCT llm('Say', title, max_tokens => 7) AS said FROM t WHERE id < :most", {"most": 2})
    assert rows(found) == [("Say|title='n0'7",), ("Say|title='n1'7",)]
    assert "Spark Connect" in spark.last_query.decisions[0]

    before = asked()
    planned = frame.transform(with_llm, "said", llm("Say", "title")).select("id", "said")
    assert rows(planned) == rows(planned.orderBy("said")) == wanted
    assert planned.alias("a").join(planned.alias("b"), "said").count() == 48
    assert asked() - before == 3, "each distinct row once"
    kept = frame.transform(where_llm, llm_filter("Is it?", "title"))
    assert rows(kept) == rows(frame.filter(llm_filter("Is it?", "title")))
    assert with_llm(frame.filter("id < 0"), "said", llm("Say", "title")).collect() == []

    for wrong, kind, text in (
        (lambda: llmsql.spark.statistics(spark), LlmsqlError, "Spark Connect has no accumulators"),
        (lambda: spark.sql("SELECT llm('Say', nothing) FROM t"), LlmsqlError, "`nothing` cannot be resolved"),
        (lambda: with_llm(frame, "x", llm("Say", "title", on_error="stop")), CallError, "'on_error' must be"),
    ):
        with pytest.raises(kind, match=text):
            wrong()
    spark.close()
    connect.stop()
    print("all is well")


def test_over_connect(tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "notes")]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}  # what the server runs as worker
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert "all is well" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


if __name__ == "__main__":
    main(sys.argv[1])
