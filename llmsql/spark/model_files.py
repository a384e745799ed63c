"""Names of models that travel: what the driver calls a model, and where a worker finds it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pyspark import SparkContext, SparkFiles

from llmsql import models
from llmsql.errors import ModelError

BROUGHT = "spark-files:"  # before the name of a folder among the files that Spark brings to executors


def portable_name(name: str | os.PathLike[str]) -> str:
    """The name of a model as workers can open it: a hub id, an absolute folder, 'demo', or one that Spark brings.

    Folders that Spark brings to its executors (`addArchive`, `spark.archives`, `addFile`) count before hub ids.

    Raises:
        ModelError: there is no such folder, or it lacks weights or tokenizer.
    """
    text = os.fspath(name)
    if text == models.DEMO:
        models.resolve(text)
        return models.DEMO  # its folder is inside the package, which may be elsewhere on a worker
    relative = Path(text)
    has_files = SparkContext._active_spark_context is not None  # not over Spark Connect
    if has_files and text.strip() and not relative.is_absolute() and not relative.expanduser().exists():
        folder = str(SparkFiles.get(text))
        if os.path.isdir(folder):
            models.resolve(folder)
            return BROUGHT + text
    return models.resolve(name)


def local_name(name: str | None) -> str | None:
    """On a worker, the name of a model there.

    Raises:
        ModelError: Spark has not brought it, or there is no such folder on this machine.
    """
    if name is None:
        return None
    if not name.startswith(BROUGHT):
        if os.path.isabs(name) and not os.path.isdir(name):
            raise ModelError(
                f"model {name!r}: there is no such folder on {socket.gethostname()}: put it at the same path on every "
                "node, or let Spark bring it (sparkContext.addArchive, or spark.archives)"
            )
        return name
    wanted = name.removeprefix(BROUGHT)
    folder = str(SparkFiles.get(wanted))
    if not os.path.isdir(folder):
        raise ModelError(
            f"model {wanted!r}: Spark has brought no such folder to {socket.gethostname()}: add the archive before "
            "the functions are registered (sparkContext.addArchive, or spark.archives)"
        )
    return folder
