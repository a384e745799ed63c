"""Spark Connect: functions, planned DataFrames and clear errors where there is no JVM beside the session.

Needs `pip install 'llmsql[connect]'`, and a process of its own, in which nothing has started a JVM.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")
from llmsql.spark.requirements import CONNECT, pyspark_version

if pyspark_version() < CONNECT:
    pytest.skip("over Spark Connect llmsql needs pyspark 4.0 or later", allow_module_level=True)
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
    from llmsql.testing import FakeModel

    def noted(prompt, fields, options):
        with open(notes, "a") as lines:
            lines.write("asked\n")
        if fields.get("title") == "bad":
            raise ValueError("too bad")
        return describe(prompt, fields, options)

    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    builder = SparkSession.builder.remote("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.memory", "512m")
    builder = builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    connect = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    frame = connect.range(0, 12, 1, 2).selectExpr("id", "concat('n', id % 3) AS title")
    frame.createOrReplaceTempView("t")
    model = FakeModel(noted)
    try:
        for check in (functions, statements, dataframes, streams, failures, limits, an_engine_at_an_address):
            check(llmsql.spark.register(connect, model=model), frame, Path(notes))
            print(check.__name__, "is well", flush=True)
        llmsql.spark.register(connect, model=model).close()
    finally:
        connect.stop()  # the process would not end


WANTED = sorted((n, f"Say|title='n{n % 3}'") for n in range(12))


def rows(found):
    return sorted(tuple(row) for row in found.collect())


def asked(notes):
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def functions(spark, frame, notes):
    from llmsql.spark import llm

    assert rows(frame.select("id", llm("Say", "title").alias("said"))) == WANTED
    assert rows(spark.spark.sql("SELECT id, llm('Say', struct(title)) FROM t")) == WANTED


def statements(spark, frame, notes):
    from llmsql.spark.kept_frames import kept_frames

    before = asked(notes)
    said = spark.sql("SELECT id, llm('Say', title) AS said FROM t ORDER BY id DESC")
    frame.limit(0).createOrReplaceTempView("t")
    assert [tuple(row) for row in said.collect()] == WANTED[::-1], "the rows are those of the statement's time"
    frame.createOrReplaceTempView("t")
    assert said.alias("a").join(said.alias("b"), "said").count() == 48
    assert asked(notes) - before == 3, "each distinct row once"
    (stage,) = spark.last_query.stages
    assert (stage.rows, stage.distinct, stage.asked, stage.failed) == (12, 3, 3, 0)
    found = spark.sql("SELECT DISTINCT llm('Say', title, max_tokens => 7) AS said FROM t WHERE id < :most", {"most": 2})
    assert rows(found) == [("Say|title='n0'7",), ("Say|title='n1'7",)]

    passing = [n for n in range(12) if all(describe(ask, {"title": f"n{n % 3}"}, FILTER) == "Yes" for ask in "AB")]
    predicates = "llm_filter('A', title) AND llm_filter('B', title)"
    assert rows(spark.sql(f"SELECT id FROM t WHERE {predicates}")) == [(n,) for n in passing]
    assert "predicates in the order" in spark.last_query.decisions[0]
    assert len(rows(spark.sql("SELECT id FROM t WHERE llm_filter('A', title) OR id < 3 LIMIT 3"))) == 3
    spark.sql("CREATE TABLE said USING parquet AS SELECT id, llm('Say', title) AS said FROM t")
    assert rows(spark.table("said")) == WANTED
    spark.sql("DROP TABLE said")
    assert "ask llm('Say', title)" in spark.explain("SELECT llm('Say', title) FROM t")
    assert spark.dry_run("SELECT llm('Say', title) FROM t").stages[0].to_run == 3
    kept = kept_frames(spark.spark)
    kept.sweep()
    del said, found
    gc.collect()
    assert len(kept._unread) == 2, "the results are given back by the next statement"
    spark.sql("SELECT 1")
    assert not kept._unread
    assert not [table.name for table in spark.catalog.listTables() if table.name.startswith("__llmsql")]


FILTER = {"function": "llm_filter"}


def dataframes(spark, frame, notes):
    from llmsql.spark import llm, llm_filter, where_llm, with_llm

    before = asked(notes)
    planned = frame.transform(with_llm, "said", llm("Say", "title")).select("id", "said")
    assert rows(planned) == rows(planned.orderBy("said")) == WANTED
    assert asked(notes) - before == 3
    assert spark.last_query.model_calls == 3
    kept = frame.transform(where_llm, llm_filter("Is it?", "title"))
    assert rows(kept) == rows(frame.filter(llm_filter("Is it?", "title")))
    assert with_llm(frame.filter("id < 0"), "said", llm("Say", "title")).collect() == []


def streams(spark, frame, notes):
    from llmsql import CallError
    from llmsql.spark import llm, with_llm

    arriving, told = str(notes.with_suffix(".arriving")), str(notes.with_suffix(".told"))
    frame.write.parquet(arriving)
    stream = spark.readStream.schema(frame.schema).option("maxFilesPerTrigger", 1).parquet(arriving)

    def run(writer):
        query = writer.trigger(availableNow=True).start()
        assert query.awaitTermination(200)
        assert query.exception() is None

    asked = stream.select("id", llm("Say", "title").alias("said"))
    run(asked.writeStream.format("memory").queryName("of_functions"))
    assert rows(spark.table("of_functions")) == WANTED

    def answer(batch, number, told=told):  # runs in a process of the server's
        import llmsql.spark
        from llmsql.testing import FakeModel

        llmsql.spark.register(batch.sparkSession, model=FakeModel(describe))
        llmsql.spark.with_llm(batch, "said", llmsql.spark.llm("Say", "title")).write.mode("append").parquet(told)

    run(stream.writeStream.foreachBatch(answer))
    assert rows(spark.read.parquet(told).select("id", "said")) == WANTED
    with pytest.raises(CallError, match="a stream has no end: use the function as a column, or foreachBatch"):
        with_llm(stream, "said", llm("Say", "title"))


def failures(spark, frame, notes):
    from llmsql import CallError, LlmsqlError, ModelError, RowError
    from llmsql.failures import LlmsqlWarning
    from llmsql.spark import llm, register, statistics, with_llm

    bad = "SELECT title, llm('Say', title{}) AS said FROM VALUES ('bad'), ('good') AS v(title)"
    with pytest.warns(LlmsqlWarning, match="1 of 2 rows failed and are NULL; the first: ValueError: too bad"):
        found = spark.sql(bad.format(""))
    assert rows(found) == [("bad", None), ("good", "Say|title='good'")]
    assert rows(spark.sql("SELECT * FROM llm_errors()")) == [
        ("llm('Say', title)", '{"title": "bad"}', "ValueError: too bad")
    ]
    lost = "/no/such/folder"
    elsewhere = register(spark, model=lost, cache=False)
    for wrong, kind, text in (
        (lambda: spark.sql(bad.format(", on_error => 'fail'")), RowError, "too bad; the row: title='bad'"),
        (lambda: statistics(spark), LlmsqlError, "Spark Connect has no accumulators"),
        (lambda: spark.sql("SELECT llm('Say', nothing) FROM t"), LlmsqlError, "`nothing` cannot be resolved"),
        (lambda: with_llm(frame, "x", llm("Say", "title", on_error="stop")), CallError, "'on_error' must be"),
        (lambda: elsewhere.sql("SELECT llm('Say', title) FROM t"), ModelError, f"'{lost}': there is no such folder on"),
        (lambda: with_llm(frame, "x", llm("Say", "title", model=lost)), ModelError, "there is no such folder on"),
    ):
        with pytest.raises(kind, match=text):
            wrong()


def limits(spark, frame, notes):
    from llmsql import BudgetError
    from llmsql.interruption import InterruptError
    from llmsql.spark import register
    from llmsql.testing import FakeModel

    with pytest.raises(BudgetError, match="max_rows is 2"):
        register(spark, model=FakeModel(describe), max_rows=2).sql("SELECT llm('Say', id) FROM t")

    begun = notes.with_suffix(".begun")

    def slowly(prompt, fields, options, begun=str(begun)):
        Path(begun).touch()
        time.sleep(1)
        return "slow"

    slow = register(spark, model=FakeModel(slowly))

    def interrupt():
        while not begun.exists():
            time.sleep(0.1)
        slow.interrupt()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InterruptError, match="interrupted after 0 rows"):
        slow.sql("SELECT llm('Say', id) FROM range(4000)")


def an_engine_at_an_address(spark, frame, notes):
    from llmsql.serving.server import EngineServer
    from llmsql.spark import llm, register
    from llmsql.testing import FakeModel

    server = EngineServer(FakeModel(describe), name="fake", token="x", fingerprint=lambda: b"fake")
    try:
        here = register(spark, engine=f"grpc://127.0.0.1:{server.port}", token="x", cache=False)
        assert rows(here.sql("SELECT id, llm('Say', title, model => 'fake') AS said FROM t")) == WANTED
        assert rows(frame.select("id", llm("Say", "title", model="fake"))) == WANTED
        assert here.last_query.model_calls == 3
    finally:
        server.stop()


@pytest.mark.timeout(600)
def wait_for_port(port=15002, seconds=120):
    """Until no other server has the only port on which `SparkSession.builder.remote("local")` starts one."""
    end = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind(("0.0.0.0", port))
            except OSError:
                assert time.monotonic() < end, f"another process has port {port}, which Spark Connect needs"
        time.sleep(1)


def test_over_connect(tmp_path):
    wait_for_port()
    command = [sys.executable, __file__, str(tmp_path / "notes")]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}  # what the server runs as worker
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


if __name__ == "__main__":
    main(sys.argv[1])
