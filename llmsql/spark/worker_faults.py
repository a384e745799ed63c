"""What a machine lacks whose tasks cannot run: its name, the Python it ran, and what to do."""

from __future__ import annotations

import re

from pyspark import SparkContext

LOST_TASK = re.compile(r"Lost task \S+ in stage \S+ \(TID \d+\) \((\S+) executor (\w+)\)")
MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")
OTHER_VERSION = "PYTHON_VERSION_MISMATCH"
MEMORY = (  # what a text says of memory, and what to do
    (r"\bcode 52\b|\bOutOfMemory", "an executor's JVM has too little memory: raise spark.executor.memory"),
    (
        r"\b(?:Arrow)?MemoryError\b",
        "a Python worker has too little memory: lower batch_rows, or raise spark.executor.pyspark.memory",
    ),
    (
        r"\bcode 137\b|\bRemote RPC client disassociated|\bPython worker exited unexpectedly",
        "a process ended: if it was for memory, raise spark.executor.memory or spark.executor.memoryOverhead, or lower "
        "batch_rows",
    ),
    (
        r"\bFetchFailed|\bMissing an output location for shuffle",
        "executors that held its rows were lost each time, perhaps for want of memory: raise spark.executor.memory",
    ),
)


def place_and_advice(text: str) -> str:
    """What to add to the reason for which Spark gave up a task; "" where its text tells nothing.

    Args:
        text: all that Spark says of the failure.
    """
    lost = LOST_TASK.findall(text)
    place = f", on {lost[-1][0]} (executor {lost[-1][1]})" if lost else ""
    missing = MISSING_MODULE.search(text)
    context = SparkContext._active_spark_context
    python = "the workers' Python" if context is None else f"the Python of Spark's workers ({context.pythonExec!r})"
    if missing is not None:
        package = missing[1].split(".")[0]
        return f"{place}: install {package} for {python} on every machine, or name another with PYSPARK_PYTHON"
    if OTHER_VERSION in text:
        return f"{place}: {python} must have the driver's minor version on every machine; PYSPARK_PYTHON names it"
    for pattern, advice in MEMORY:
        if re.search(pattern, text):
            return f"{place}: {advice}"
    return place
