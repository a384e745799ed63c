"""Spark on a real standalone cluster: the same answers, each tuple asked once, whatever is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from spark_cluster import Notes, Running, cluster_of_two, environment, hooked_python, kept_answers, kill
from spark_cluster_models import HALT, Noting, OnNode

import llmsql.spark
from llmsql.demo.reviews import reviews_table

pytestmark = [
    pytest.mark.spark,
    pytest.mark.spark_cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with cluster_of_two(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def spark(cluster):
    with cluster.application() as session:
        # Five texts of ten rows each, the rest once.
        session.range(0, 100, 1, 4).selectExpr(
            "id", "if(id < 50, concat('v', id % 5), concat('w', id)) AS text", "id % 7 AS kind"
        ).createOrReplaceTempView("t")
        yield session


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes")


class TestPlanned:
    """Each distinct tuple that survives is asked once by all workers together."""

    def planned(self, spark, notes):
        return llmsql.spark.register(spark, model=FakeModel(Noting(str(notes.path)), fingerprint=b"noting"))

    def test_order_by_a_self_join_a_cte_twice_and_two_actions(self, spark, notes):
        planned = self.planned(spark, notes)
        frame = planned.sql(
            "WITH said AS (SELECT id, llm('Say', text) AS loud FROM t WHERE kind < 5) "
            "SELECT a.id, a.loud FROM said a JOIN said b ON a.id = b.id ORDER BY a.loud DESC, a.id"
        )
        texts = {row.id: row.text for row in spark.table("t").filter("kind < 5").collect()}
        wanted = sorted(((key, text.upper()) for key, text in texts.items()), key=lambda row: row[0])
        wanted.sort(key=lambda row: row[1], reverse=True)
        assert [tuple(row) for row in frame.collect()] == wanted
        assert frame.count() == len(wanted)
        assert [row.id for row in frame.orderBy("id").limit(3).collect()] == sorted(texts)[:3]
        assert notes.asked() == Counter(set(texts.values())), "each tuple once, over all actions"
        assert planned.last_query.model_calls == len(set(texts.values()))
        assert len({pid for text in set(texts.values()) for pid in notes.who(text)}) > 1, "several workers asked"


class TestKilled:
    """kill -9 in the middle of a query: nothing changes but the time it takes."""

    ROWS = 60
    SQL = f"SELECT id, llm('Say', concat(if(id = 40, '{HALT}', 'x'), id)) AS loud FROM range({ROWS})"
    WANTED = tuple((number, f"HALT{number}" if number == 40 else f"X{number}") for number in range(ROWS))

    def kill_the_halted(self, cluster, query, notes, cache=None):
        (victim,) = query.until(lambda: notes.who("halt40"), "the row was not asked")
        assert victim in cluster.python_workers()
        if cache is not None:  # which is written a moment later
            query.until(lambda: kept_answers(cache) >= notes.asked().total() - 1, "what is finished was not kept")
        kill(victim)
        notes.go()

    def test_a_python_worker(self, cluster, spark, notes):
        """Without a result cache, and with more rows than a task holds at a time: it loses that batch, and no more."""
        model = FakeModel(Noting(str(notes.path)), fingerprint=b"noting")
        planned = llmsql.spark.register(spark, model=model, cache=False, batch_rows=6)
        query = Running(lambda: tuple(sorted(map(tuple, planned.sql(self.SQL).collect()))))
        self.kill_the_halted(cluster, query, notes)
        assert query.result() == self.WANTED
        asked = notes.asked()
        assert set(asked) == {text.lower() for _, text in self.WANTED}
        assert asked["halt40"] == max(asked.values()) == 2
        assert asked.total() - self.ROWS <= 6, "a batch"
        (stage,) = planned.last_query.stages
        assert (stage.rows, stage.distinct, stage.asked) == (self.ROWS,) * 3

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_python_worker_with_a_result_cache(self, cluster, spark, notes, in_place):
        """One that all machines see: only what was on its way is asked again, also where nothing is planned."""
        cache = notes.path.with_suffix(".sqlite")
        model = FakeModel(Noting(str(notes.path)), fingerprint=b"noting")
        planned = llmsql.spark.register(spark, model=model, cache=str(cache))
        run = spark.sql if in_place else planned.sql
        query = Running(lambda: tuple(sorted(map(tuple, run(self.SQL).collect()))))
        self.kill_the_halted(cluster, query, notes, cache)
        assert query.result() == self.WANTED
        asked = notes.asked()
        assert set(asked) == {text.lower() for _, text in self.WANTED}
        assert asked["halt40"] == 2
        assert asked.total() - self.ROWS <= 3, "finished rows are kept"

    def test_an_engine_process(self, cluster, spark, notes):
        cache = notes.path.with_suffix(".sqlite")
        planned = llmsql.spark.register(spark, model=OnNode(str(notes.path)), cache=str(cache))
        sql = f"SELECT x, llm('wait', x) AS said FROM (SELECT id AS x FROM range({self.ROWS}))"
        query = Running(lambda: {row.x: row.said for row in planned.sql(sql).collect()})
        (victim,) = query.until(lambda: notes.who("9"), "the row was not asked")  # the next one halts
        assert victim in cluster.engines()
        query.until(lambda: kept_answers(cache) >= self.ROWS * 3 // 4, "what is finished was not kept")
        kill(victim)
        notes.go()
        found = query.result()
        assert {x: text.split()[1] for x, text in found.items()} == {x: str(x) for x in range(self.ROWS)}
        asked = notes.asked()
        assert set(asked) == {str(x) for x in range(self.ROWS)}
        assert victim not in notes.who("10"), "another process was started"
        assert asked.total() - self.ROWS <= 5, "only what was on its way is asked again"

    @pytest.mark.parametrize("process", ["engine", "executor"])
    def test_with_a_real_engine(self, cluster, spark, notes, tmp_path, process):
        """Engines are given rows twice that were on their way: a batch of eight of each of the machine's two tasks."""
        reviews = reviews_table(480).select(["review_id", "product_title", "review"])
        call = f"llm('{process}: what is it about?', product_title, review, max_tokens => 24)"
        sql = f"SELECT review_id, {call} AS said FROM reviews"
        with closing(llmsql.connect(model="demo", cache=False)) as con:
            con.register("reviews", reviews)
            wanted = sorted(con.sql(sql).fetchall())
        spark.createDataFrame(reviews.to_pylist()).createOrReplaceTempView("reviews")
        for pid in cluster.engines():  # of tests before
            kill(pid)
        known = spark.sparkContext.pythonExec
        spark.sparkContext.pythonExec = str(hooked_python(tmp_path, NOTING_ENGINE.format(notes=str(notes.path))))
        try:
            planned = llmsql.spark.register(spark, model="demo", cache=True, batch_rows=8)
            query = Running(lambda: sorted(map(tuple, planned.sql(sql).collect())))
            engine = query.until(lambda: self.halt_at_work(cluster, notes), "no engine is at work")
            victim = engine
            if process == "executor":
                machine = environment(engine)["LLMSQL_RUNTIME_DIR"]
                executors = cluster.processes("CoarseGrainedExecutorBackend")
                (victim,) = [pid for pid in executors if environment(pid)["LLMSQL_RUNTIME_DIR"] == machine]
            kill(victim)
            os.kill(engine, signal.SIGCONT)
            assert query.result() == wanted
        finally:
            spark.sparkContext.pythonExec = known
        (stage,) = planned.last_query.stages
        assert (stage.rows, stage.distinct, stage.failed) == (480, stage.asked + stage.cached, 0)
        given, answered = noted(notes, "given"), noted(notes, "answered")
        print(f"{process}: given twice {given.total() - len(given)}, answered twice {answered.total() - len(answered)}")
        assert len(given) == len(answered) == stage.distinct
        assert 0 < given.total() - stage.distinct <= 2 * 8
        assert answered.total() - stage.distinct <= 2 * 8

    def halt_at_work(self, cluster, notes):
        """An engine that is in the middle of a batch, and does not go on."""
        for engine in cluster.engines():
            os.kill(engine, signal.SIGSTOP)
            answered = noted(notes, "answered", engine)
            if len(answered) >= 40 and noted(notes, "given", engine) - answered:
                return engine
            os.kill(engine, signal.SIGCONT)
        return None


def noted(notes, what, engine=None):
    """How often the engines, or one of them, were given a row, or have answered it."""
    lines = (line.split() for line in notes.path.read_text().splitlines())
    return Counter(row for pid, one, row in lines if one == what and engine in (None, int(pid)))


NOTING_ENGINE = """
    import sys

    if "llmsql.serving.engine_process" in sys.orig_argv:
        import json
        import os
        import zlib

        from llmsql.embedded import EmbeddedModel

        answer = EmbeddedModel.answer

        def note(what, rows):
            with open({notes!r}, "a") as notes:
                notes.writelines(f"{{os.getpid()}} {{what}} {{row:08x}}\\n" for row in rows)

        def noting(self, call, fields, settings, statistics):
            rows = [zlib.crc32(json.dumps(row, sort_keys=True).encode()) for row in fields.to_pylist()]
            note("given", rows)
            for found in answer(self, call, fields, settings, statistics):
                note("answered", [rows[found.row]])
                yield found

        EmbeddedModel.answer = noting
"""
