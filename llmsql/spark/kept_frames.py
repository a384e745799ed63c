"""Persisted DataFrames behind results, given back when nothing can read them any more."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pyspark
from py4j.protocol import Py4JError
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from llmsql.spark.requirements import is_connect

LOG = logging.getLogger(__name__)


class KeptFrames:
    """The persisted DataFrames behind the results of one Spark session.

    A result's plan, on the JVM, is part of the plan of every DataFrame and view built on it. A weak reference to it
    tells when the last of them is gone; losing frames too early would cost questions, but change no answer.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, list[DataFrame]]] = []
        self._unread: list[Callable[[], object]] = []  # checkpoints on a server, each to be given back
        self._lock = threading.Lock()

    def keep(self, result: DataFrame, frames: list[DataFrame]) -> None:
        """Keep `frames` for as long as `result`, or what is built on it, can be read."""
        if frames and not is_connect(result.sparkSession):
            plan = result._jdf.queryExecution().analyzed()
            jvm = result.sparkSession.sparkContext._jvm
            assert jvm is not None
            with self._lock:
                self._kept.append((jvm.java.lang.ref.WeakReference(plan), frames))

    def take(self, checkpoint: DataFrame) -> None:
        """Give a checkpoint of Spark Connect back with the `sweep` after its last reader is gone.

        By itself it asks the server at that moment, which may be one in which Python collects garbage in a thread of
        gRPC's that holds the lock for it, and so waits forever.
        """
        plan = checkpoint._plan
        kind: Any = type(plan)
        again = partial(kind, plan._relation_id, plan._spark_session)
        weakref.finalize(plan, self._unread.append, again).atexit = False
        plan._spark_session = None

    def sweep(self) -> None:
        """Give back what nothing can read any more."""
        while self._unread:
            self._unread.pop()()  # one that is gone at once, and tells the server
        with self._lock:
            unused = [frames for plan, frames in self._kept if plan.get() is None]
            self._kept = [(plan, frames) for plan, frames in self._kept if not any(frames is one for one in unused)]
        for frames in unused:
            give_back(frames)

    def clear(self) -> None:
        """Give everything back; results that are still in use would ask again (over Connect they stay)."""
        self.sweep()
        with self._lock:
            kept, self._kept = self._kept, []
        for _, frames in kept:
            give_back(frames)

    def __len__(self) -> int:
        return len(self._kept)


_by_session: weakref.WeakKeyDictionary[SparkSession, KeptFrames] = weakref.WeakKeyDictionary()


def kept_frames(spark: SparkSession) -> KeptFrames:
    """Those of a session."""
    return _by_session.setdefault(spark, KeptFrames())


def sweep(spark: SparkSession) -> None:
    """Give back what nothing can read any more, of all sessions: every micro-batch of a stream comes with its own.

    What sessions had whose application has ended is gone with it.
    """
    for session, kept in list(_by_session.items()):
        if is_connect(session):
            if session is spark:
                kept.sweep()
        elif session.sparkContext._jsc is None:
            del _by_session[session]
        else:
            kept.sweep()


def give_back(frames: list[DataFrame]) -> None:
    """Unpersist frames."""
    for frame in frames:
        frame.unpersist()


def read_once(frame: DataFrame) -> DataFrame:
    """The rows of a frame as they come now, also when what holds them is lost later.

    Rows that are drawn would be others when Spark computes them again, and there would be no answers for them. Before
    Spark 4 one executor holds each row; when all that hold it are gone, Spark says that a checkpoint is not found.
    """
    try:
        checkpoint = frame.localCheckpoint(True, dear_rows(frame.sparkSession))
    except TypeError:  # before Spark 4
        return frame.localCheckpoint(True)
    if is_connect(frame.sparkSession):
        kept_frames(frame.sparkSession).take(checkpoint)
    return checkpoint


def dear_rows(spark: SparkSession) -> StorageLevel:
    """How rows are kept that cost a model's work, or come only once: by two executors, where there may be two."""
    is_alone = re.fullmatch(r"local(\[.*\])?", spark.conf.get("spark.master", "")) is not None
    return StorageLevel.MEMORY_AND_DISK if is_alone else StorageLevel.MEMORY_AND_DISK_2


def without_plan(frame: DataFrame) -> DataFrame:
    """The rows of a persisted frame, as a frame that does not show how they came to be.

    Spark writes down the plans of all that is persisted behind a query each time it runs one: frames that are built on
    frames would take ever longer. What is lost with an executor is computed again as before. Where this Spark has no
    such thing, it is the frame itself.
    """
    session = frame.sparkSession
    if is_connect(session):
        return frame
    jvm = session.sparkContext._jvm
    assert jvm is not None
    try:
        rows = frame._jdf.queryExecution().toRdd()
        sql = jvm.org.apache.spark.sql
        rdds = _object(sql.execution, "LogicalRDD")
        try:
            plan = rdds.fromDataset(rows, frame._jdf, False)
        except Py4JError:  # newer ones take one argument more
            plan = rdds.fromDataset(rows, frame._jdf, False, False)
        dataset = _object(sql if pyspark.__version__ < "4" else sql.classic, "Dataset")
        return DataFrame(dataset.ofRows(session._jsparkSession, plan), session)
    except (Py4JError, TypeError) as problem:
        LOG.debug("plans stay behind frames: %s", problem)
        return frame


def _object(package: Any, name: str) -> Any:
    """An object of Scala's."""
    return getattr(getattr(package, f"{name}$"), "MODULE$")
