"""A session: a Spark session on which statements with LLM calls are planned."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.model import Model
from llmsql.planner import Plan, Switches, plan_statement
from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import mentions_llm_call, name_parameters, parse_statement
from llmsql.planner.planning import ANY_ORDER
from llmsql.spark import registration as registering
from llmsql.spark.catalog import SparkCatalog, shown
from llmsql.spark.dialect import as_planned
from llmsql.spark.in_place import register_in_place
from llmsql.spark.kept_frames import give_back, kept_frames
from llmsql.spark.plan_runner import SparkPlanRunner
from llmsql.spark.registration import Registration
from llmsql.statistics import QueryStatistics

Parameters = Sequence[Any] | Mapping[str, Any] | None
CHANGING = re.compile(r"\s*(UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
PLANNED = (exp.Query, exp.Create, exp.Insert)  # the statements that are planned

LOG = logging.getLogger(__name__)


class PlanningSession:
    """A Spark session that understands LLM calls; made by `llmsql.spark.register`.

    `sql` plans the LLM calls of a statement, runs them, and hands everything else to Spark as it is. All other methods
    and attributes are those of the Spark session itself, which is `spark`; there the calls are UDFs.
    `last_query` tells what the last statement with LLM calls did.

    Args:
        registration: the model and the settings of the functions on the Spark session.
        spark: where statements run.
    """

    def __init__(self, spark: SparkSession, registration: Registration):
        self.spark = spark
        self.last_query = QueryStatistics()
        self._registration = registration

    def sql(self, sqlQuery: str, args: Any = None, **kwargs: Any) -> DataFrame:
        """Run a statement, as `SparkSession.sql`.

        The LLM calls have run when this returns, each distinct argument tuple once; their answers stay in memory and on
        disk for as long as the DataFrame, or one built on it, is there. A statement without calls, one with DataFrames
        in `kwargs`, and one that cannot be planned run as in Spark itself, with the calls as UDFs;
        `last_query.decisions` says why.

        Raises:
            CallError: a call is written wrongly; the message has its line and column.
            QueryError: a statement with LLM calls does not parse or bind.
            ModelError: the model cannot be loaded or run.
            RowError: a row failed and the call said `on_error => 'fail'`.
        """
        kept = kept_frames(self.spark)
        kept.sweep()

        tree = None if kwargs else _planned_tree(sqlQuery)
        if tree is None:
            with _clear_refusals(sqlQuery):
                return self.spark.sql(sqlQuery, args=args, **kwargs)
        run = _runner(self.spark, args)
        started = time.perf_counter()
        statistics = self.last_query = QueryStatistics(sql=sqlQuery)
        runner = SparkPlanRunner(self.spark, run, self._registration, statistics)
        result: DataFrame | None = None
        try:
            plan = self._plan(tree, run, name_parameters(args))
            statistics.plan = plan.explain()
            LOG.debug("the plan of %s\n%s", sqlQuery, statistics.plan)
            runner.run_steps(plan)
            result = runner.run_final(plan)
        except (QueryError, PySparkException) as problem:
            result = self._unplanned(problem, sqlQuery, args, tree)
        finally:
            runner.drop_views()
            if result is None or not isinstance(tree, exp.Query):
                give_back(runner.frames)
        if isinstance(tree, exp.Query):
            kept.keep(result, runner.frames)
        statistics.seconds = time.perf_counter() - started
        return result

    def explain(self, sqlQuery: str, args: Parameters = None) -> str:
        """The plan of a statement with LLM calls as text; no model is asked.

        Raises:
            CallError, QueryError: as `sql`.
        """
        tree = _planned_tree(sqlQuery)
        if tree is None:
            raise QueryError("the statement has no LLM call that is planned: use DataFrame.explain")
        return self._plan(tree, _runner(self.spark, args), name_parameters(args)).explain()

    def close(self) -> None:
        """Give back the memory and disk space of all answers; results still in use would ask again. Idempotent."""
        kept_frames(self.spark).clear()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("spark", "_registration"):
            raise AttributeError(name)
        return getattr(self.spark, name)

    def _plan(self, tree: exp.Expression, run: Callable[[str], DataFrame], parameters: dict[str, Any]) -> Plan:
        settings = self._registration.settings
        for select in tree.find_all(exp.Select):
            select.meta[ANY_ORDER] = True  # tables have no order in Spark
        # A filter is a stage over all its rows: batches that are chosen on the way would be jobs one after another.
        switches = Switches(settings.short_circuit, False, False, settings.infer_types)
        catalog = SparkCatalog(self.spark, run, parameters)
        return plan_statement(tree.copy(), catalog, stage_calls=settings.plan, switches=switches)

    def _unplanned(self, problem: Exception, text: str, args: Parameters, tree: exp.Expression) -> DataFrame:
        """The statement with its calls as UDFs, where Spark can run it so."""
        reason = shown(problem)
        try:
            if not isinstance(tree, exp.Query):
                raise problem
            result = self.spark.sql(text, args=args)
        except PySparkException:
            raise problem if isinstance(problem, QueryError) else QueryError(reason) from problem
        self.last_query.decisions.append(f"not planned, the calls run as UDFs: {reason}")
        LOG.warning("not planned, the calls run as UDFs: %s", reason)
        return result


def register(
    spark: SparkSession | PlanningSession, *, model: str | os.PathLike[str] | Model | None = None, **settings: Any
) -> PlanningSession:
    """Add the LLM functions to a Spark session; a session whose `sql` plans them.

    On the session that comes back, `sql` plans, and all else is that of `spark`. On `spark` itself, and in DataFrames,
    the functions run partition by partition. What the calls look like there, and where the model runs, is said at
    `llmsql.spark.registration.register`.

    Args:
        spark: the session; nothing but its functions is changed.
        model: a model folder, a hub id, 'demo' (the default), or an object that answers, which is pickled to the
            workers and asked there.
        **settings: see `llmsql.settings.Settings`.

    Raises:
        ModelError: there is no such model folder, or it lacks weights or tokenizer.
        SettingError: an unknown or ill-typed setting, no Spark session, or a model that cannot be pickled.

    Example:
        spark = llmsql.spark.register(SparkSession.builder.getOrCreate(), model="demo")
        spark.sql("SELECT llm_filter('Is it positive?', review) FROM reviews").show()
    """
    own = spark.spark if isinstance(spark, PlanningSession) else spark
    registering.register(own, model=model, **settings)
    registration = registering.registration_of(own)
    register_in_place(own, registration)
    return PlanningSession(own, registration)


def statistics(spark: SparkSession | PlanningSession) -> QueryStatistics:
    """As `llmsql.spark.registration.statistics`."""
    return registering.statistics(spark.spark if isinstance(spark, PlanningSession) else spark)


def _runner(spark: SparkSession, args: Parameters) -> Callable[[str], DataFrame]:
    """Runs SQL with the statement's parameters, which all have names in what the planner writes."""
    named = name_parameters(args)
    return lambda text: spark.sql(text, args=named) if named else spark.sql(text)


@contextmanager
def _clear_refusals(text: str) -> Iterator[None]:
    """Spark has an internal error for a statement that changes a table which it cannot change.

    Raises:
        QueryError: Spark failed with UPDATE, DELETE or MERGE with calls.
    """
    found = CHANGING.match(text) if mentions_llm_call(text) else None
    try:
        yield
    except (PySparkException, Py4JError) as problem:
        if found is None:
            raise
        reason = re.search(r"Exception: (.*)", str(problem))
        raise QueryError(
            f"{found[1].upper()} with LLM calls runs as Spark itself can run it, which failed; ask first, with "
            f"CREATE TABLE ... AS SELECT, and change the table from that: {reason[1] if reason else shown(problem)}"
        ) from problem


def _planned_tree(text: str) -> exp.Expression | None:
    """The parsed statement, if its calls are to be planned."""
    if not mentions_llm_call(text) or text.lstrip()[:7].upper() == "EXPLAIN":
        return None
    tree = parse_statement(text, "spark")
    if not isinstance(tree, PLANNED) or not has_llm_call(tree):
        return None
    return as_planned(tree)
