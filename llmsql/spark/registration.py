"""`register`: the LLM functions on a Spark session, and the counters of what they asked."""

from __future__ import annotations

import os
import re
import sys
import weakref
from dataclasses import dataclass, replace
from typing import Any

from pyspark import Accumulator, SparkContext, cloudpickle
from pyspark.sql import Column, SparkSession
from pyspark.sql.udf import UserDefinedFunction

from llmsql import models
from llmsql.errors import LlmsqlError, SettingError
from llmsql.functions import FUNCTIONS, Call, cached_type
from llmsql.model import Model
from llmsql.settings import NODE, Settings
from llmsql.spark.counters import Counters, forget_counters, make_counters, read_counters
from llmsql.spark.desk import desk_of
from llmsql.spark.model_files import portable_name
from llmsql.spark.partition import PartitionFunction
from llmsql.spark.reports import Allowance
from llmsql.spark.requirements import CONNECT, is_connect, pyspark_version
from llmsql.spark.user_functions import call_function, user_function
from llmsql.statistics import QueryStatistics


@dataclass(frozen=True)
class Registration:
    """A model and settings as one session's functions use them."""

    context: SparkContext  # None over Spark Connect
    model: str | Model
    settings: Settings
    counters: Accumulator[Counters] | None  # none over Spark Connect, and of a dry run

    @property
    def is_live(self) -> bool:
        """Whether the Spark application still runs."""
        return self.context is None or self.context._jsc is not None

    def named(self, call: Call) -> Call:
        """The call with the name under which workers can open its model, if it names one.

        Raises:
            ModelError: there is no such model folder, or it lacks weights or tokenizer.
        """
        name = call.model and _travelling(call.model, self.settings, self.context is None)
        return call if name == call.model else replace(call, model=name)

    def counters_with(self, own: Accumulator[Counters]) -> tuple[Accumulator[Counters], ...]:
        """Where the tasks of a stage with counters of its `own` count."""
        return (own,) if self.counters is None else (own, self.counters)

    def function(self, name: str, call: Call | None = None, *, in_place: bool = False) -> UserDefinedFunction:
        """The function as a Spark UDF; see `PartitionFunction` for `call` and `in_place`."""
        desk = desk_of(self.context) if self.settings.has_budget and self.context is not None else None
        allowance = Allowance.of(self.settings, None if desk is None else desk.line(""))
        body = PartitionFunction(name, call, self.model, self.settings, self.counters, in_place, allowance)
        kind = cached_type(FUNCTIONS[name].sql_type) if call is None else call.value_type
        function = user_function(body, kind.arrow)
        # Spark may evaluate a deterministic call of one row twice, and would see two answers where they are drawn.
        return function.asNondeterministic() if call is not None and call.temperature > 0 else function

    def column(self, call: Call, fields: Column) -> Column:
        """The answers to a call about the members of a struct."""
        return call_function(self.function(call.function, call), call.value_type.arrow, fields)


_by_session: weakref.WeakKeyDictionary[SparkSession, Registration] = weakref.WeakKeyDictionary()
_last: Registration | None = None


def register(
    spark: SparkSession, *, model: str | os.PathLike[str] | Model | None = None, **settings: Any
) -> SparkSession:
    """Add `llm`, `llm_filter` and `llm_classify` to Spark SQL, and make the Column functions use this model.

    In SQL the call is `llm('prompt', column, …)`, `llm_filter('prompt', struct(title, body))` or
    `llm_classify('prompt', array('a', 'b'), column, …)`. Spark does not tell a function the names of its columns:
    fields get names from a struct argument and are called field1, field2, ... otherwise. Options of a single call are
    for the Column functions; SQL calls take those of `settings`.

    Each partition is buffered up to `batch_rows` rows, its duplicates are dropped and the rest is ordered for prefix
    reuse. The model is loaded by one process per node (and GPU), which all Python workers of the node ask, and which
    ends `engine_linger` seconds after the last of them; so it must be at the same path on every node, or a hub id.
    `engine="process"` lets every worker load it instead, and an address lets all ask an engine that `llmsql serve`
    started. Workers need llmsql installed; they run the interpreter that $PYSPARK_PYTHON names when the session starts,
    and without it, when Spark runs on this machine alone (`local[...]`), that of this process.

    Args:
        spark: the session; the same one comes back.
        model: a model folder, a hub id, 'demo' (the default), or an object that answers, which is pickled to the
            workers and asked there.
        **settings: see `llmsql.settings.Settings`.

    Raises:
        ModelError: there is no such model folder, or it lacks weights or tokenizer.
        SettingError: an unknown or ill-typed setting, no Spark session, or a model that cannot be pickled.

    Example:
        spark = llmsql.spark.register(SparkSession.builder.getOrCreate(), model="demo")
        spark.sql("SELECT llm_filter('Is it positive?', struct(review)) FROM reviews").show()
    """
    global _last
    over_connect = is_connect(spark)
    if not isinstance(spark, SparkSession) and not over_connect:
        raise SettingError(f"register needs a SparkSession, not {type(spark).__module__}.{type(spark).__name__}")
    if over_connect and pyspark_version() < CONNECT:
        raise SettingError("over Spark Connect llmsql needs pyspark 4.0 or later: pip install --upgrade pyspark")
    checked = Settings.make(settings)
    context = None if over_connect else spark.sparkContext
    if context is not None and context.master.startswith("local") and not os.environ.get("PYSPARK_PYTHON"):
        context.pythonExec = sys.executable  # Spark's default is the first python3 on PATH, which may lack llmsql
    checked = _for_workers(checked, context)
    counters = None if context is None else make_counters(context)
    registration = Registration(context, _portable_model(model, checked, over_connect), checked, counters)
    for name in FUNCTIONS:
        spark.udf.register(name, registration.function(name))
    replaced = _by_session.get(spark)
    if replaced is not None and replaced.counters is not None:
        forget_counters(replaced.counters)
    _by_session[spark] = _last = registration
    return spark


def statistics(spark: SparkSession) -> QueryStatistics:
    """What the functions asked since they were registered on `spark`, summed over all tasks that ran to their end.

    Each query that Spark runs counts, also one that runs again because it is not cached: this is what was spent, not
    what was needed. A task that Spark tries several times (a lost executor, speculation) counts once. One that fails
    in the end, or that a LIMIT stops early, sends Spark no counts.

    Raises:
        LlmsqlError: nothing was registered on this session, or it is one of Spark Connect, which counts nothing.
    """
    counters = registration_of(spark).counters
    if counters is None:
        raise LlmsqlError("Spark Connect has no accumulators, so what the functions asked there is not known here")
    return read_counters(counters)


def registration_of(spark: SparkSession) -> Registration:
    """What the functions of a session use.

    Raises:
        LlmsqlError: nothing was registered on it.
    """
    registration = _by_session.get(spark)
    if registration is None:
        raise LlmsqlError("this Spark session has no LLM functions: call llmsql.spark.register(spark, model=…) first")
    return registration


def last_registration() -> Registration:
    """What the Column functions use.

    Raises:
        LlmsqlError: nothing was registered, or its Spark application has ended.
    """
    if _last is None or not _last.is_live:
        raise LlmsqlError("the LLM functions have no model yet: call llmsql.spark.register(spark, model=…) first")
    return _last


def _for_workers(settings: Settings, context: SparkContext | None) -> Settings:
    """The settings as workers are to use them: what is left open is settled here, where the driver's variables are."""
    if settings.address is not None and settings.token is None:
        settings = settings.changed(token=os.environ.get("LLMSQL_TOKEN") or None)
    if settings.engine is None and sys.platform != "win32":
        settings = settings.changed(engine=NODE)
    if settings.engine == NODE and settings.engine_threads is None and context is not None:
        local = re.fullmatch(r"local\[(\d+)(,.*)?\]", context.master)
        cores = local[1] if local else context.getConf().get("spark.executor.cores")
        settings = settings.changed(engine_threads=int(cores) if cores else None)
    return settings


def _portable_model(
    model: str | os.PathLike[str] | Model | None, settings: Settings, over_connect: bool
) -> str | Model:
    """A name under which workers can open the model, or an object that answers and pickles."""
    if model is None:
        model = models.DEMO if settings.address is None else ""
    if isinstance(model, (str, os.PathLike)):
        return _travelling(os.fspath(model), settings, over_connect)
    answering = models.open_model(model, settings)
    try:
        cloudpickle.dumps(answering)
    except Exception as problem:
        raise SettingError(
            f"the model must travel to Spark's workers, and {type(model).__name__} cannot be pickled: {problem}"
        ) from problem
    return answering


def _travelling(name: str, settings: Settings, over_connect: bool) -> str:
    """As `portable_name`, but for models that are not on this machine: an engine's own, or a folder of the server."""
    return name if settings.address is not None or (over_connect and os.path.isabs(name)) else portable_name(name)
