"""A standalone Spark for the tests: a master and workers from the pyspark package, as processes on loopback.

Everything that it starts, and all that those start (executors, Python workers, engine processes), bears a mark in its
environment, by which it is found and ended. Master and workers also end when the process that started them is killed;
executors end with their worker, and Python workers with their executor.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyspark.find_spark_home import _find_spark_home as spark_home
from pyspark.sql import SparkSession

from llmsql import LlmsqlError
from llmsql.spark.requirements import check_java

MARK = "LLMSQL_TEST_CLUSTER"
START = 120  # seconds for a process to be there, on a busy machine
WAIT = 150  # seconds until a test says that something hangs
LOOK = 0.05
PATIENCE = 900  # seconds without a word after which Spark gives a process up; one that ends is noticed at once
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss512k"
PR_SET_PDEATHSIG = 1


class SparkCluster:
    """Running from the moment it is made until `stop`. Each worker has a loopback address of its own: a host to Spark.

    Args:
        folder: where its files go, logs included.
        workers: how many, with `cores` slots each.
        environments: variables of single workers, and so of their executors and Python workers, by number.
    """

    def __init__(
        self, folder: Path, *, workers: int = 2, cores: int = 2, environments: Mapping[int, Mapping[str, str]] = {}
    ):
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.cores = workers * cores
        self._cores_of_one = cores
        self._environments = environments
        (folder / "conf").mkdir()
        try:
            self._start("master", "127.0.0.1", ["master.Master"], {})
            self.url = self._said("master", r"Starting Spark master at (spark://\S+)")
            for number in range(workers):
                self.start_worker(number)
            for number in range(workers):
                self.wait_for_worker(number)
        except BaseException:
            self.stop()
            raise

    def start_worker(self, number: int) -> None:
        """Start a worker, or one that was killed anew."""
        folder = self.folder / f"work{number}"
        size = ["--cores", str(self._cores_of_one), "--memory", "2g", "--work-dir", str(folder)]
        command = ["worker.Worker", *size, self.url]
        self._start(f"worker{number}", _host(number), command, self._environments.get(number, {}))

    def wait_for_worker(self, number: int) -> None:
        """Until it is there."""
        self._said(f"worker{number}", r"Successfully registered with master (\S+)")

    def worker(self, number: int) -> int:
        """The process of a worker, a JVM."""
        (pid,) = self.processes(rf"worker\.Worker --host {re.escape(_host(number))} ")
        return pid

    @contextmanager
    def application(self, settings: Mapping[str, Any] = {}) -> Iterator[SparkSession]:
        """A session whose driver is this process; nothing of the application is left afterwards."""
        running = session(self.url, self.folder, settings)
        try:
            yield running
        finally:
            running.stop()
        self.ended()

    def ended(self, seconds: float = 60) -> None:
        """Wait until there is nothing but master and workers."""
        others = r"^(?!.*org\.apache\.spark\.deploy\.(master|worker))"
        eventually(
            lambda: not self.processes(others),
            "processes do not end",
            lambda: str(self.processes(others)),
            seconds=seconds,
        )

    def processes(self, pattern: str = "") -> dict[int, str]:
        """The commands of its processes, and of what they started, where `pattern` is found in them."""
        return {pid: command for pid, command in marked(self.mark).items() if re.search(pattern, command)}

    def python_workers(self) -> list[int]:
        """The processes that run tasks: children of a daemon that Spark starts for each executor."""
        daemons = set(self.processes(r"pyspark\.daemon"))
        return sorted(pid for pid in daemons if parent(pid) in daemons)

    def engines(self) -> list[int]:
        """The engine processes."""
        return sorted(self.processes(r"llmsql\.serving\.engine_process|serving_engine\.py"))

    def stop(self) -> None:
        """End all of it at once."""

        def ended() -> bool:
            left = self.processes()
            for pid in left:
                kill(pid)
            return not left

        eventually(ended, "processes do not end", lambda: str(self.processes()), seconds=30)

    def log(self, name: str) -> str:
        """What a process has said: 'master', 'worker0', …"""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, host: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        local = self.folder / f"local_{name}"
        local.mkdir(exist_ok=True)
        variables = {
            **os.environ,
            # `python3` is this one, and finds the modules beside the tests.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "SPARK_HOME": spark_home(),
            "SPARK_CONF_DIR": str(self.folder / "conf"),
            "SPARK_LOCAL_IP": host,
            "SPARK_LOCAL_HOSTNAME": host,
            "SPARK_LOCAL_DIRS": str(local),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": f"{JAVA_OPTIONS} -Dspark.worker.timeout={PATIENCE}",
            MARK: self.mark,
            **environment,
        }
        variables.pop("PYSPARK_PYTHON", None)
        name_of_class, *arguments = command
        place = ["--host", host, "--port", "0", "--webui-port", "0"]
        with (self.folder / f"{name}.log").open("wb") as log:
            subprocess.Popen(
                [f"{spark_home()}/bin/spark-class", f"org.apache.spark.deploy.{name_of_class}", *place, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                preexec_fn=_end_with_parent,
            )

    def _said(self, name: str, pattern: str) -> str:
        """What a process says once it is there."""
        found = eventually(lambda: re.search(pattern, self.log(name)), f"{name} does not start", self.log, name)
        return str(found[1])


def _host(number: int) -> str:
    return f"127.0.0.{number + 2}"


def as_nodes(folder: Path, number: int) -> dict[int, dict[str, str]]:
    """Variables that make each of so many workers a machine of its own, with its own engines and result cache."""
    return {
        one: {"LLMSQL_RUNTIME_DIR": str(folder / f"run{one}"), "LLMSQL_CACHE": str(folder / f"cache{one}.sqlite")}
        for one in range(number)
    }


@contextmanager
def cluster_of_two(folder: Path, cores: int = 2) -> Iterator[SparkCluster]:
    """Two workers of so many slots that do not see each other's files; skips the tests without Java."""
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    running = SparkCluster(folder, cores=cores, environments=as_nodes(folder, 2))
    try:
        yield running
    finally:
        running.stop()


def hooked_python(folder: Path, code: str, *, only: str = "") -> Path:
    """A Python for Spark's workers, and the engines that they start, in which `code` runs first.

    Args:
        folder: where its files go.
        code: what runs.
        only: the runtime folder of the machine that has it, if it is only one.
    """
    hook, python = folder / "hook", folder / "python3"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(textwrap.dedent(code))
    here = f'[ "$LLMSQL_RUNTIME_DIR" = "{only}" ] && ' if only else ""
    python.write_text(f'#!/bin/sh\n{here}export PYTHONPATH={hook}:$PYTHONPATH\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


class Notes:
    """What models on any machine were asked, as the models of spark_cluster_models.py note it."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def asked(self) -> Counter[str]:
        """How often each text was asked."""
        return Counter(text for _, text in self._lines())

    def who(self, text: str) -> list[int]:
        """The processes that were asked about a text."""
        return [pid for pid, one in self._lines() if one == text]

    def go(self) -> None:
        """Let the halted go on."""
        self.path.with_suffix(".go").touch()

    def _lines(self) -> list[tuple[int, str]]:
        lines = (line.split(" ", 1) for line in self.path.read_text().splitlines())
        return [(int(pid), text) for pid, text in lines]


class Running:
    """A function that runs in a thread of its own while the test does something to it."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._found: Any = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until(self, condition: Callable[[], Any], message: str) -> Any:
        """As `eventually`, while it runs."""

        def looked() -> Any:
            found = condition()
            assert found or self._thread.is_alive(), f"{message}, and it ended: {self.result()}"
            return found

        return eventually(looked, message)

    def result(self) -> Any:
        """What it returns or raises, in good time."""
        eventually(lambda: not self._thread.is_alive(), "the query does not end", seconds=WAIT)
        if self._problem is not None:
            raise self._problem
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._function()
        except BaseException as problem:
            self._problem = problem


def session(url: str, folder: Path, settings: Mapping[str, Any]) -> SparkSession:
    """A session on a cluster, with the settings under which small queries start soonest."""
    options = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": JAVA_OPTIONS,
        "spark.network.timeout": f"{PATIENCE}s",
        "spark.python.authenticate.socketTimeout": f"{PATIENCE}s",
        "spark.executor.memory": "640m",
        "spark.executor.extraJavaOptions": JAVA_OPTIONS,
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        **settings,
    }
    builder = SparkSession.builder.master(url).appName("llmsql tests")
    for name, value in options.items():
        builder = builder.config(name, str(value).lower() if isinstance(value, bool) else value)
    found = builder.getOrCreate()
    found.sparkContext.setLogLevel("OFF")
    for name in settings:  # else those of the JVM's first application would be those of all after it
        found.sparkContext._jvm.java.lang.System.clearProperty(name)
    return found


def kept_answers(cache: Path) -> int:
    """How many answers a result cache has."""
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as con:
        if not con.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
            return 0
        return int(con.execute("SELECT count(*) FROM answers").fetchone()[0])


def marked(mark: str) -> dict[int, str]:
    """The commands of the processes that bear a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def environment(pid: int) -> dict[str, str]:
    """The variables of a process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


def parent(pid: int) -> int | None:
    """The process that started another."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def kill(pid: int) -> None:
    """kill -9, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def eventually(condition: Callable[[], Any], message: str, *details: Any, seconds: float = START) -> Any:
    """What `condition` returns once it is true; `details` is a function and its arguments, for the failure.

    Looks are counted, not seconds, so that time for which all processes stand still does not count.
    """
    for _ in range(int(seconds / LOOK)):
        if found := condition():
            return found
        time.sleep(LOOK)
    raise AssertionError(f"{message} within {seconds:g} seconds\n{details[0](*details[1:]) if details else ''}")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
