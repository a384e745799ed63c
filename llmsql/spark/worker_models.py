"""The models of one Python worker process."""

from __future__ import annotations

from llmsql import models
from llmsql.model import Model
from llmsql.settings import Settings

_kept: dict[tuple[object, ...], models.ModelSet] = {}


def worker_models(model: str | Model, settings: Settings) -> models.ModelSet:
    """The models that tasks in this process ask: `model`, and those that calls name with the option `model`.

    A named model is loaded once per process and kept until Spark ends the process, so that later tasks find it warm.
    An object that answers came with the task and is used as it is. Spark starts its workers with OMP_NUM_THREADS set
    to `spark.task.cpus`, so the engines of one node share its cores without more ado.
    """
    if not isinstance(model, str):
        return models.ModelSet(model, settings)
    key = (model, *settings.engine_options().values())
    if key not in _kept:
        _kept[key] = models.ModelSet(models.acquire(model, settings), settings)
    return _kept[key]
