"""Spark on a standalone cluster: executors and drivers that are killed, schedulers that interfere, broken machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark.sql import functions as F
from spark_cluster import (
    MARK,
    Notes,
    Running,
    cluster_of_two,
    environment,
    eventually,
    hooked_python,
    kept_answers,
    kill,
    parent,
    spark_home,
)
from spark_cluster_models import HALT, HUGE, Greedy, Noting

import llmsql.spark
from llmsql import ModelError
from llmsql.demo import MODEL_FOLDER
from llmsql.spark import llm, with_llm

pytestmark = [
    pytest.mark.spark,
    pytest.mark.spark_cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
]

ROWS = 60
HALTING = f"SELECT id, llm('Say', concat(if(id = 40, '{HALT}', 'x'), id)) AS loud FROM range({ROWS})"
LOUD = tuple((number, f"HALT{number}" if number == 40 else f"X{number}") for number in range(ROWS))
GONE = 10  # seconds after an application's end in which all of it is gone


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with cluster_of_two(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes")


def noting(spark, notes, **settings):
    """A planned session whose model notes what it is asked; no test finds the answers of another."""
    fingerprint = str(notes.path).encode()
    return llmsql.spark.register(spark, model=FakeModel(Noting(str(notes.path)), fingerprint=fingerprint), **settings)


def found(frame):
    return tuple(sorted(map(tuple, frame.collect())))


class TestExecutors:
    """One that is killed, or runs out of memory."""

    @pytest.fixture(scope="class")
    def application(self, cluster):
        # An executor that was alone for a moment would else look for another one only a minute later.
        # Three attempts: one that runs out of memory, and one that Spark sends to the executor that is about to end.
        with cluster.application({"spark.task.maxFailures": 3, "spark.storage.cachedPeersTtl": 100}) as session:
            yield session

    @pytest.fixture
    def spark(self, application):
        """With both executors, also when a test before has killed one."""
        known = application.sparkContext._jsc.sc().getExecutorMemoryStatus
        eventually(lambda: known().size() == 3, "no driver with two executors", known)
        return application

    def halted(self, cluster, query, notes):
        """The executor of the task that halts, and its Python workers."""
        (victim,) = query.until(lambda: notes.who("halt40"), "the row was not asked")
        executor = parent(parent(victim))
        assert "CoarseGrainedExecutorBackend" in cluster.processes()[executor]
        return executor, {pid for pid in cluster.python_workers() if parent(parent(pid)) == executor}

    def answered(self, query, notes):
        """Rows that ran twice, when all are right."""
        assert query.result() == LOUD
        asked = notes.asked()
        assert set(asked) == {text.lower() for _, text in LOUD}
        assert max(asked.values()) <= 2
        return asked.total() - ROWS

    def test_killed_in_the_middle(self, cluster, spark, notes):
        """On two machines whose result caches are their own: at most a batch of each killed task runs again."""
        planned = noting(spark, notes, cache=True)
        query = Running(lambda: found(planned.sql(HALTING)))
        executor, workers = self.halted(cluster, query, notes)
        kill(executor)
        eventually(lambda: not workers & set(cluster.processes()), "Python workers outlive their executor")
        notes.go()
        assert self.answered(query, notes) <= 2 * ROWS // 4, "a batch of each of its two tasks"

    def test_killed_after_the_model_has_run(self, cluster, spark, notes):
        planned = noting(spark, notes, cache=False)
        # Rows that are drawn: computed again they would be others, for which there are no answers.
        drawn = "SELECT concat('x', cast(rand() * 1e9 AS BIGINT)) AS text FROM range(0, 200, 1, 4)"
        frame = planned.sql(f"SELECT text, llm('Say', text) AS loud FROM ({drawn} DISTRIBUTE BY rand() LIMIT 50)")
        asked = notes.asked()
        kill(min(cluster.processes("CoarseGrainedExecutorBackend")))
        rows = Running(lambda: found(frame)).result()
        assert Counter(text for text, _ in rows) == asked
        assert [row for row in rows if row[1] != row[0].upper()] == []
        assert notes.asked() == asked, "another executor has the answers, too"

    def test_out_of_memory_in_the_middle(self, cluster, spark, notes, tmp_path):
        planned = noting(spark, notes, cache=True)
        query = Running(lambda: found(planned.sql(HALTING)))
        executor, workers = self.halted(cluster, query, notes)
        # On each slot that is left a task of another query, of which one needs a text of 2 GB.
        size = F.udf(greed(executor, tmp_path / "once"), "int")
        sizes = spark.range(0, 3, 1, 3).select(size("id").alias("size"))
        greedy = Running(lambda: sizes.selectExpr("length(repeat('x', size)) AS size").collect())
        eventually(lambda: executor not in cluster.processes(), "the executor has memory enough")
        eventually(lambda: not workers & set(cluster.processes()), "Python workers outlive their executor")
        notes.go()
        assert self.answered(query, notes) <= ROWS // 4, "a batch of the task that was killed"
        assert [row.size for row in greedy.result()] == [1, 1, 1]

    def test_out_of_memory_at_each_attempt(self, spark, notes):
        cache = notes.path.with_suffix(".sqlite")
        planned = noting(spark, notes, cache=str(cache))
        sql = f"SELECT llm('Say', text) AS said FROM (SELECT {{}} AS text FROM range({ROWS}))"
        with pytest.raises(ModelError, match=r"memory.*: raise spark\.executor\.memory"):
            planned.sql(sql.format(f"if(id = 40, '{HUGE}', concat('x', id))"))
        kept = kept_answers(cache)
        assert kept > 1, "some tasks were on the other executor"
        asked = notes.asked().total()
        assert found(planned.sql(sql.format("concat('x', id)"))) == tuple(sorted((f"X{n}",) for n in range(ROWS)))
        asked_again = notes.asked().total() - asked
        assert asked_again - (ROWS - kept) in (0, 1), "finished rows are kept, perhaps the huge one as well"


def greed(executor, once):
    """How long a text is to be: too long for an executor, once."""

    def size(number):
        if parent(parent(os.getpid())) != executor or once.exists():
            return 1
        once.touch()
        return 2_000_000_000

    return size


def test_a_python_worker_out_of_memory(cluster, notes):
    with cluster.application({"spark.executor.pyspark.memory": "2g"}) as spark:  # for each of two 1 GB
        planned = llmsql.spark.register(spark, model=Greedy(str(notes.path), times=1))
        sql = "SELECT id, llm('Say', id) AS said FROM range(20)"
        assert found(planned.sql(sql)) == tuple((number, str(number)) for number in range(20))
        planned = llmsql.spark.register(spark, model=Greedy(str(notes.path), times=99))
        with pytest.raises(ModelError, match=r"MemoryError: .*lower batch_rows"):
            planned.sql(sql)


class TestDriver:
    SCRIPT = """
        import sys
        from pathlib import Path
        from spark_cluster import session
        import llmsql.spark

        url, folder, cache, ready = sys.argv[1:]
        spark = session(url, Path(folder), {})
        llm = llmsql.spark.register(spark, model="demo", cache=cache)
        llm.sql("SELECT id, llm('Say', id, max_tokens => 3) AS said FROM range(8)").collect()
        Path(ready).touch()
        llm.sql("SELECT id, llm('Tell a story', id, max_tokens => 60) AS said FROM range(4000)").collect()
    """

    @pytest.mark.parametrize("process", ["Python", "the JVM"])
    def test_killed_in_the_middle(self, cluster, tmp_path, process):
        ready, cache = tmp_path / "ready", tmp_path / "answers.sqlite"
        environment = {**os.environ, MARK: cluster.mark, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        log = tmp_path / "log"
        with log.open("wb") as output:
            driver = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(self.SCRIPT), cluster.url, tmp_path, cache, ready],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        eventually(
            lambda: ready.exists() or driver.poll() is not None, "the driver does not start", log.read_text, seconds=240
        )
        eventually(lambda: kept_answers(cache) > 20 or driver.poll() is not None, "nothing is answered", log.read_text)
        assert driver.poll() is None, log.read_text()
        assert cluster.engines()
        assert cluster.python_workers()
        if process == "Python":
            kill(driver.pid)
        else:
            (jvm,) = [pid for pid in cluster.processes("java") if parent(pid) == driver.pid]
            kill(jvm)
            eventually(lambda: driver.poll() is not None, "the driver hangs without its JVM")
        driver.wait()
        cluster.ended(GONE)
        assert 20 < kept_answers(cache) < 4000, "the next run finds what was answered"


class TestOneEngine:
    def test_four_slots_share_it_until_the_application_ends(self, cluster, tmp_path):
        """Two executors of two slots on one machine."""
        machine = {"spark.executorEnv.LLMSQL_RUNTIME_DIR": str(tmp_path / "run")}
        with cluster.application(machine) as spark:
            llmsql.spark.register(spark, model="demo", cache=False)
            frame = spark.range(0, 32, 1, 4).select("id", llm("Say", "id", max_tokens=4).alias("said"))
            assert frame.filter("said IS NULL").count() == 0
            workers = cluster.python_workers()
            assert len(workers) == 4
            (engine,) = cluster.engines()
            memory = {pid: proportional(pid) for pid in [engine, *workers]}
            print(f"MiB: the engine {memory[engine]}, the workers {[memory[pid] for pid in workers]}")
            assert not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in workers)
            assert all(memory[pid] < memory[engine] / 2 for pid in workers), memory
            spark.stop()
            cluster.ended(GONE)

    SQL = "SELECT id, llm('Tell a story', id, max_tokens => 24) AS said FROM range(400)"

    @pytest.fixture(scope="class")
    def stories(self):
        with llmsql.connect(model="demo", cache=False) as con:
            return tuple(sorted(con.sql(self.SQL + " AS t(id)").fetchall()))

    def telling(self, cluster, spark, cache):
        """A query of a real engine, which is halted in the middle."""
        planned = llmsql.spark.register(spark, model="demo", cache=str(cache), batch_rows=8)
        query = Running(lambda: found(planned.sql(self.SQL)))
        query.until(lambda: kept_answers(cache) > 20, "nothing is answered")
        engine, *_ = cluster.engines()
        os.kill(engine, signal.SIGSTOP)
        return query, engine

    def test_who_started_it_is_killed(self, cluster, tmp_path, stories):
        """The Python worker that asked first; the others' engine goes on."""
        machine = {"spark.executorEnv.LLMSQL_RUNTIME_DIR": str(tmp_path / "run")}
        with cluster.application(machine) as spark:
            query, engine = self.telling(cluster, spark, tmp_path / "cache")
            starter = parent(engine)
            assert starter in cluster.python_workers()
            kill(starter)
            os.kill(engine, signal.SIGCONT)
            assert query.result() == stories
            assert cluster.engines() == [engine]
            spark.stop()
            cluster.ended(GONE)

    def test_a_worker_of_spark_is_killed(self, cluster, tmp_path, stories):
        """Its executor, their Python workers and the engine of its machine go, and the other machine does the rest."""
        with cluster.application() as spark:
            query, engine = self.telling(cluster, spark, tmp_path / "cache")
            machine = environment(engine)["LLMSQL_RUNTIME_DIR"]
            number = [str(cluster.folder / f"run{one}") for one in range(2)].index(machine)
            there = {pid for pid in cluster.processes() if environment(pid).get("LLMSQL_RUNTIME_DIR") == machine}
            kill(cluster.worker(number))
            os.kill(engine, signal.SIGCONT)
            try:
                left = partial(remaining, cluster, there)
                eventually(lambda: not left(), "processes of the machine are left", left, seconds=GONE)
                assert query.result() == stories
            finally:
                cluster.start_worker(number)
                cluster.wait_for_worker(number)


def remaining(cluster, processes):
    """Those that are still there."""
    return processes & set(cluster.processes())


def proportional(pid):
    """MiB of a process, of what it shares with others its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024


class TestPartitions:
    @pytest.fixture(scope="class")
    def spark(self, cluster):
        with cluster.application() as session:
            yield session

    @pytest.mark.parametrize("adaptive", [True, False])
    def test_of_no_rows_and_one_of_all_rows(self, spark, notes, adaptive):
        spark.conf.set("spark.sql.adaptive.enabled", adaptive)
        planned = noting(spark, notes)
        frame = spark.range(0, 80, 1, 4).filter("id < 20").selectExpr("id", "concat('x', id % 10) AS text")
        wanted = tuple((number, f"X{number % 10}") for number in range(20))
        assert found(frame.select("id", llm("Say", "text"))) == wanted
        assert notes.asked() == Counter({f"x{number}": 1 for number in range(10)})
        frame.createOrReplaceTempView("uneven")
        assert found(planned.sql("SELECT id, llm('Shout', text) FROM uneven")) == wanted
        assert notes.asked() == Counter({f"x{number}": 2 for number in range(10)})
        one = frame.withColumn("text", F.lit("same"))
        assert found(with_llm(one, "said", llm("Say", "text")).select("id", "said"))[-1] == (19, "SAME")
        assert notes.asked()["same"] == 1
        assert found(planned.sql("SELECT id, llm('Say', text) FROM uneven WHERE id > 99")) == ()
        sql = "WITH a AS (SELECT id, llm('Sum', id) AS s FROM uneven) SELECT * FROM a JOIN a b USING (id) ORDER BY id"
        assert len(found(planned.sql(sql))) == 20
        assert planned.last_query.model_calls == 20


class TestScheduling:
    def test_speculation_runs_a_slow_task_twice(self, cluster, notes):
        settings = {
            "spark.speculation": True,
            "spark.speculation.interval": "100ms",
            "spark.speculation.quantile": "0.5",
            "spark.speculation.minTaskRuntime": "100ms",
            "spark.speculation.task.duration.threshold": "2s",  # also where all rows are in one task
        }
        with cluster.application(settings) as spark:
            planned = noting(spark, notes, cache=str(notes.path.with_suffix(".sqlite")), max_rows=ROWS)
            query = Running(lambda: found(planned.sql(HALTING)))  # the first that is asked never ends by itself
            assert query.result() == LOUD
            assert len(set(notes.who("halt40"))) == 2, "in two processes"
            asked = notes.asked()
            assert asked.pop("halt40") == 2
            assert len(asked) == ROWS - 1
            assert max(asked.values()) == 1, "finished rows are found in the result cache"
            (stage,) = planned.last_query.stages
            assert (stage.rows, stage.distinct, stage.asked + stage.cached) == (ROWS, ROWS, ROWS)

    def test_executors_come_and_go(self, cluster, notes):
        settings = {
            "spark.dynamicAllocation.enabled": True,
            "spark.dynamicAllocation.shuffleTracking.enabled": True,
            "spark.dynamicAllocation.shuffleTracking.timeout": "1s",
            "spark.dynamicAllocation.minExecutors": 0,
            "spark.dynamicAllocation.executorIdleTimeout": "1s",
            "spark.dynamicAllocation.cachedExecutorIdleTimeout": "1s",
            "spark.dynamicAllocation.schedulerBacklogTimeout": "1s",
        }
        with cluster.application(settings) as spark:
            planned = noting(spark, notes, cache=str(notes.path.with_suffix(".sqlite")))
            notes.go()
            frame = planned.sql(HALTING)
            assert found(frame) == LOUD
            eventually(lambda: not cluster.processes("CoarseGrainedExecutorBackend"), "idle executors stay")
            assert found(frame) == LOUD
            assert set(notes.asked().values()) == {1}, "answers that went with an executor come from the result cache"


class TestSubmitted:
    """By spark-submit, to machines whose Python has all packages but llmsql: Spark brings it, and a model."""

    SCRIPT = """
        import json
        import sys
        from pathlib import Path

        from spark_cluster import session

        import llmsql.spark
        from llmsql.spark import llm

        url, folder, model = sys.argv[1:]
        spark = session(url, Path(folder), {"spark.cores.max": 1})
        assert "llmsql.zip" in llmsql.__file__
        for name in (model, "carried"):
            planned = llmsql.spark.register(spark, model=name, cache=False)
            rows = planned.sql("SELECT id, llm('Say', id, max_tokens => 4) AS said FROM range(6)").collect()
            same = spark.range(6).select("id", llm("Say", "id", max_tokens=4).alias("said")).collect()
            assert sorted(rows) == sorted(same)
            print(json.dumps(sorted(map(tuple, rows))))
        spark.stop()
    """

    def test_an_archive_of_llmsql(self, cluster, tmp_path):
        python = self.python_without_llmsql(tmp_path / "environment")
        with zipfile.ZipFile(tmp_path / "llmsql.zip", "w") as archive:
            for folder, _, names in os.walk(Path(llmsql.__file__).parent, followlinks=True):
                for file in (Path(folder) / name for name in names if name.endswith((".py", ".cpp", ".h", ".typed"))):
                    archive.write(file, file.relative_to(Path(llmsql.__file__).parent.parent))
        model = shutil.make_archive(str(tmp_path / "model"), "zip", MODEL_FOLDER)
        (tmp_path / "job.py").write_text(textwrap.dedent(self.SCRIPT))
        brought = ["--py-files", str(tmp_path / "llmsql.zip"), "--archives", f"{model}#carried"]
        command = [f"{spark_home()}/bin/spark-submit", "--master", cluster.url, *brought]
        settings = ["--driver-memory", "512m", "--conf", f"spark.pyspark.python={python}"]
        tests = str(Path(__file__).parent)
        done = subprocess.run(
            [*command, *settings, str(tmp_path / "job.py"), cluster.url, str(tmp_path), str(MODEL_FOLDER)],
            env={**os.environ, MARK: cluster.mark, "PYTHONPATH": tests, "SPARK_HOME": spark_home()},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-3000:]  # Spark writes there what the driver says of errors
        with llmsql.connect(model="demo", cache=False) as con:
            wanted = con.sql("SELECT id, llm('Say', id, max_tokens := 4) FROM range(6) t(id) ORDER BY id").fetchall()
        assert [json.loads(line) for line in done.stdout.splitlines()] == [list(map(list, wanted))] * 2
        cluster.ended(GONE)

    def python_without_llmsql(self, folder):
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        (packages,) = folder.glob("lib/python3*/site-packages")
        # What is found by a path file is searched, but path files in it are not read: that of an installed llmsql.
        (packages / "all.pth").write_text(sysconfig.get_path("purelib"))
        command = [python, "-c", "import torch, pyspark; import llmsql"]
        done = subprocess.run(command, capture_output=True, text=True, env={}, cwd=folder)
        assert "No module named 'llmsql'" in done.stderr, done.stderr
        return python


class TestBrokenMachines:
    """One of two machines lacks something."""

    @pytest.fixture
    def broken(self, cluster, tmp_path):
        """A Python that is broken on the second machine in the way that a file says."""
        python = hooked_python(tmp_path, HOOK, only=str(cluster.folder / "run1"))

        def start(how):
            (tmp_path / "hook" / "how").write_text(how)
            return python

        return start

    @pytest.fixture(scope="class")
    def spark(self, cluster):
        settings = {"spark.task.maxFailures": 1, "spark.scheduler.minRegisteredResourcesRatio": 1}
        with cluster.application(settings) as session:
            yield session

    def failure(self, spark, python, model="demo"):
        """What a statement says whose tasks run on both machines."""
        known = spark.sparkContext.pythonExec
        spark.sparkContext.pythonExec = str(python)
        try:
            planned = llmsql.spark.register(spark, model=model, cache=False)
            sql = "SELECT id, llm('Say', id, max_tokens => 2) AS said FROM range(64)"
            with pytest.raises(llmsql.LlmsqlError) as caught:
                planned.sql(sql)
        finally:
            spark.sparkContext.pythonExec = known
        print(caught.value)
        return str(caught.value)

    def test_llmsql_is_missing(self, spark, broken):
        python = broken("llmsql")
        said = self.failure(spark, python)
        assert "No module named 'llmsql'" in said
        assert str(python) in said

    def test_another_version_of_python(self, spark, broken):
        python = broken("version")
        said = self.failure(spark, python)
        assert "3.99" in said
        assert str(python) in said

    def test_the_model_is_missing(self, spark, broken, tmp_path):
        folder = tmp_path / "own_model"
        folder.symlink_to(MODEL_FOLDER)
        said = self.failure(spark, broken("model"), model=folder)
        assert "there is no such folder" in said
        assert str(MODEL_FOLDER) in said


HOOK = """
    import os
    import sys
    from collections import namedtuple
    from importlib.abc import MetaPathFinder
    from pathlib import Path

    how = (Path(__file__).parent / "how").read_text()


    class Missing(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.split(".")[0] == "llmsql":
                raise ModuleNotFoundError("No module named 'llmsql'", name="llmsql")


    if how == "llmsql":
        sys.meta_path.insert(0, Missing())
    if how == "version":
        fields = "major minor micro releaselevel serial"
        sys.version_info = namedtuple("version_info", fields)(3, 99, *sys.version_info[2:])
    if how == "model":
        stat = os.stat

        def elsewhere(path, *args, **kwargs):
            if "llmsql/demo/model" in str(path):
                raise FileNotFoundError(2, "No such file or directory", path)
            return stat(path, *args, **kwargs)

        os.stat = elsewhere
"""
