"""What an error says of a machine whose tasks cannot run, by what Spark says of it."""

from __future__ import annotations

import pytest

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from llmsql.spark.worker_faults import place_and_advice

LOST = "Lost task 0.3 in stage 2.0 (TID 9) (10.0.0.7 executor 4): ExecutorLostFailure (executor 4 exited) Reason: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOST + "Command exited with code 52", "raise spark.executor.memory"),
        (LOST + "Command exited with code 137", "raise spark.executor.memory or spark.executor.memoryOverhead"),
        (LOST + "Remote RPC client disassociated. Likely due to …", "if it was for memory"),
        (LOST + "ModuleNotFoundError: No module named 'llmsql.spark'", "install llmsql for"),
        (LOST + "[PYTHON_VERSION_MISMATCH] Python in worker has different version", "must have the driver's minor"),
        ("java.lang.OutOfMemoryError: Java heap space", "raise spark.executor.memory"),
        ("pyarrow.lib.ArrowMemoryError: malloc of size 64 failed", "raise spark.executor.pyspark.memory"),
        ("SparkException: Python worker exited unexpectedly (crashed)", "if it was for memory"),
        ("MetadataFetchFailedException: Missing an output location for shuffle 26 partition 0", "for want of memory"),
    ],
)
def test_what_to_do_and_where(text, said):
    found = place_and_advice(text)
    assert said in found
    assert found.startswith(", on 10.0.0.7 (executor 4): " if text.startswith(LOST) else ": ")


def test_nothing_is_said_of_other_failures():
    assert place_and_advice("it is broken") == ""
    assert place_and_advice(LOST + "it is broken") == ", on 10.0.0.7 (executor 4)"
