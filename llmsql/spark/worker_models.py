"""The models of one Python worker process."""

from __future__ import annotations

import os
from dataclasses import replace

from pyspark import TaskContext

from llmsql import models
from llmsql.model import Model
from llmsql.settings import NODE, Settings

_kept: dict[tuple[object, ...], models.ModelSet] = {}


def worker_models(model: str | Model, settings: Settings) -> models.ModelSet:
    """The models that tasks in this process ask: `model`, and those that calls name with the option `model`.

    A named model is opened once per process and kept until Spark ends the process, so that later tasks find it warm.
    With `engine="node"` it is in the process that all workers of the machine share, and this one only holds it.
    An object that answers came with the task and is used as it is.
    """
    settings = placed(settings)
    if not isinstance(model, str):
        return models.ModelSet(model, settings)
    key = (model, *settings.engine_options().values(), settings.engine, settings.token, settings.engine_linger)
    if key not in _kept:
        _kept[key] = models.ModelSet(models.acquire(model, settings), settings)
    return _kept[key]


def placed(settings: Settings) -> Settings:
    """The settings for the place where this task runs: the GPU that Spark gave it, and the node's cores.

    Spark starts workers with OMP_NUM_THREADS set to the cores of one task, which is too few for all of them.
    """
    if settings.engine != NODE:
        return settings
    task = TaskContext.get()
    gpu = None if task is None else task.resources().get("gpu")
    if gpu is not None and gpu.addresses and settings.device == "auto":
        settings = replace(settings, device=f"cuda:{gpu.addresses[0]}")
    if settings.engine_threads is None:
        settings = replace(settings, engine_threads=os.cpu_count() or 1)
    return settings
