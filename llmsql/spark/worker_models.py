"""The models of one Python worker process."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from pyspark import TaskContext

from llmsql import models
from llmsql.budget import Budget
from llmsql.model import Model
from llmsql.settings import NODE, Settings
from llmsql.spark.model_files import local_name

IDLE_SECONDS = 60.0  # as long as Spark itself keeps a worker without work


class WorkerModels(models.ModelSet):
    """The models of a worker, under the names that they have on the driver."""

    used = 0.0  # when tasks wanted them last

    def get(self, name: str | None, budget: Budget | None = None) -> Model:
        """See `ModelSet.get`.

        Raises:
            ModelError: the model is not on this machine.
        """
        return super().get(name if self._settings.address is not None else local_name(name), budget)


_kept: dict[tuple[object, ...], WorkerModels] = {}


def worker_models(model: str | Model, settings: Settings) -> WorkerModels:
    """The models that tasks in this process ask: `model`, and those that calls name with the option `model`.

    A named model is opened once per process and kept, so that later tasks find it warm, until Spark ends the process,
    or tasks have asked others only for `IDLE_SECONDS`; so it is to be looked up for each batch. With `engine="node"`
    it is in the process that all workers of the machine share, and this one only holds it. An object that answers came
    with the task and is used as it is.

    Raises:
        ModelError: the model is not on this machine, or cannot be opened.
    """
    settings = placed(settings)
    if not isinstance(model, str):
        return WorkerModels(model, settings)
    if settings.address is None:
        model = local_name(model) or model
    place = (settings.engine, settings.token, settings.tls_root, settings.engine_linger)
    key = (model, *settings.engine_options().values(), *place, settings.cache, settings.cache_size)
    if key not in _kept:
        _kept[key] = WorkerModels(models.acquire(model, settings), settings)
    now = _kept[key].used = time.monotonic()
    for other in [other for other, kept in _kept.items() if now - kept.used > IDLE_SECONDS]:
        _kept.pop(other).release()
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
