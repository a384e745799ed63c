"""A session: a Spark session on which statements with LLM calls are planned."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.explaining import forecast_text
from llmsql.failures import warn_of_failures
from llmsql.forecast import DryRun
from llmsql.model import Model
from llmsql.planner import Plan, Switches, plan_statement
from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import (
    ERRORS_FUNCTION,
    mentions_llm_call,
    name_errors_table,
    name_parameters,
    parse_statement,
)
from llmsql.planner.planning import ANY_ORDER
from llmsql.planner.scratch_names import fresh_name, without_prefixes
from llmsql.spark import registration as registering
from llmsql.spark.catalog import SparkCatalog, shown
from llmsql.spark.counters import last_query, note_query
from llmsql.spark.dialect import as_planned
from llmsql.spark.dry_run import SparkDryRunner
from llmsql.spark.in_place import register_in_place
from llmsql.spark.kept_frames import give_back, kept_frames, read_once
from llmsql.spark.plan_runner import SparkPlanRunner
from llmsql.spark.registration import Registration
from llmsql.spark.requirements import is_connect
from llmsql.spark.running import interrupt
from llmsql.statistics import QueryStatistics

Parameters = Sequence[Any] | Mapping[str, Any] | None
T = TypeVar("T")
EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(EXTENDED\b|CODEGEN\b|COST\b|FORMATTED\b)?\s*", re.IGNORECASE)
CHANGING = re.compile(r"\s*(UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
IN_LAMBDA = "LAMBDA_FUNCTION_WITH_PYTHON_UDF"
PLANNED = (exp.Query, exp.Values, exp.Create, exp.Insert)  # the statements that are planned

LOG = logging.getLogger(__name__)


class PlanningSession:
    """A Spark session that understands LLM calls; made by `llmsql.spark.register`.

    `sql` plans the LLM calls of a statement, runs them, and hands everything else to Spark as it is. All other methods
    and attributes are those of the Spark session itself, which is `spark`; there the calls are UDFs.

    Args:
        registration: the model and the settings of the functions on the Spark session.
        spark: where statements run.
    """

    def __init__(self, spark: SparkSession, registration: Registration):
        self.spark = spark
        self._registration = registration

    @property
    def last_query(self) -> QueryStatistics:
        """What the last statement with LLM calls did, or the last `with_llm` or `where_llm`."""
        return last_query(self.spark)

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
            BudgetError: the statement costs more than `max_rows`, `max_tokens` or `max_seconds`.
            InterruptError: `interrupt` was called; after Ctrl-C it is a KeyboardInterrupt.
        """
        kept = kept_frames(self.spark)
        kept.sweep()
        if ERRORS_FUNCTION in sqlQuery.lower():
            return self._with_errors(sqlQuery, args, kwargs)
        explained = EXPLAIN.match(sqlQuery)
        tree = None if kwargs else _planned_tree(sqlQuery[explained.end() :] if explained else sqlQuery)
        if tree is not None and explained is not None:
            return self._explained(sqlQuery, tree, args, explained[1] or "")
        if tree is None:
            with _clear_refusals(sqlQuery):
                return self.spark.sql(sqlQuery, args=args, **kwargs)
        run = _runner(self.spark, args)
        started = time.perf_counter()
        statistics = QueryStatistics(sql=sqlQuery)
        note_query(self.spark, statistics)
        runner = SparkPlanRunner(self.spark, run, self._registration, statistics)
        result: DataFrame | None = None
        try:
            with runner.running:
                plan = self._plan(tree, run, name_parameters(args))
                statistics.plan = plan.explain()
                LOG.debug("the plan of %s\n%s", sqlQuery, statistics.plan)
                runner.run_steps(plan)
                if plan.in_place:
                    note_query(self.spark, statistics, self._registration.counters)
                result = runner.run_final(plan)
        except (QueryError, PySparkException) as problem:
            result = self._unplanned(problem, sqlQuery, args, tree)
        finally:
            runner.drop_views()
            if result is None or not isinstance(tree, exp.Query):
                give_back(runner.frames)
            statistics.seconds = time.perf_counter() - started
        if isinstance(tree, exp.Query):
            kept.keep(result, runner.frames)
        warn_of_failures(statistics)
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

    def dry_run(self, sqlQuery: str, args: Parameters = None) -> DryRun:
        """What a statement would ask and cost. All its SQL runs but the final statement; no weights are loaded.

        Rows that depend on answers which are not in the result cache are counted at their most. Nothing is kept.

        Raises:
            CallError, QueryError: as `sql`; ModelError: the model has no tokenizer that can be read.
        """
        tree = _planned_tree(sqlQuery)
        if tree is None:
            raise QueryError("the statement has no LLM call that is planned")
        return self._dry(sqlQuery, tree, args, lambda plan, found, runner: found)

    def interrupt(self) -> None:
        """Stop the statement, or the `with_llm`, that another thread runs on this session.

        It ends with an `InterruptError` that says how many rows were done; these are in the result cache.
        """
        interrupt(self.spark)

    def close(self) -> None:
        """Give back the memory and disk space of all answers; results still in use would ask again. Idempotent."""
        kept_frames(self.spark).clear()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("spark", "_registration"):
            raise AttributeError(name)
        return getattr(self.spark, name)

    def _with_errors(self, text: str, args: Any, kwargs: dict[str, Any]) -> DataFrame:
        """Run a statement with `llm_errors()`, the failed rows of the statement before."""
        failed = self.last_query.errors_to_arrow().to_pylist()
        name = fresh_name("errors")
        schema = "call string, row string, error string"
        self.spark.createDataFrame([tuple(row.values()) for row in failed], schema).createTempView(name)
        try:
            found = self.sql(name_errors_table(text, "spark", name), args, **kwargs)
            return read_once(found) if is_connect(self.spark) else found  # there it would read the view later
        finally:
            self.spark.catalog.dropTempView(name)

    def _explained(self, text: str, tree: exp.Expression, args: Parameters, how: str) -> DataFrame:
        """What EXPLAIN shows: the plan with what it would ask, and Spark's own plan of the final statement."""

        def work(plan: Plan, found: DryRun, runner: SparkDryRunner) -> str:
            own = without_prefixes(runner.run_text(f"EXPLAIN {how} ", plan.final_sql).collect()[0][0])
            return f"{forecast_text(plan, found)}\n\n{own}"

        return self.spark.createDataFrame([(self._dry(text, tree, args, work),)], "plan string")

    def _dry(
        self, text: str, tree: exp.Expression, args: Parameters, work: Callable[[Plan, DryRun, SparkDryRunner], T]
    ) -> T:
        """Run what needs no model; then `work` on what was found."""
        run = _runner(self.spark, args)
        runner = SparkDryRunner(self.spark, run, self._registration)
        try:
            with runner.running:
                plan = self._plan(tree, run, name_parameters(args))
                return work(plan, runner.result(text, plan), runner)
        finally:
            runner.drop_views()
            give_back(runner.frames)

    def _plan(self, tree: exp.Expression, run: Callable[[str], DataFrame], parameters: dict[str, Any]) -> Plan:
        settings = self._registration.settings
        for select in tree.find_all(exp.Select):
            select.meta[ANY_ORDER] = True  # tables have no order in Spark
        switches = Switches(settings.short_circuit, settings.order_filters, settings.early_stop, settings.infer_types)
        catalog = SparkCatalog(self.spark, run, parameters)
        return plan_statement(tree.copy(), catalog, stage_calls=settings.plan, switches=switches)

    def _unplanned(self, problem: Exception, text: str, args: Parameters, tree: exp.Expression) -> DataFrame:
        """The statement with its calls as UDFs, where Spark can run it so."""
        reason = shown(problem)
        if IN_LAMBDA in reason:
            reason = "Spark takes no LLM call on the elements of a list: explode the list, ask, and collect it again"
            raise QueryError(reason) from problem
        try:
            if not isinstance(tree, exp.Query):
                raise problem
            result = self.spark.sql(text, args=args)
            _ = result.schema  # over Connect nothing was bound before
        except PySparkException:
            raise problem if isinstance(problem, QueryError) else QueryError(reason) from problem
        statistics = last_query(self.spark)
        note_query(self.spark, statistics, self._registration.counters)
        statistics.decisions.append(f"not planned, the calls run as UDFs: {reason}")
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
    except Exception as problem:  # also Py4J's own
        if found is None:
            raise
        reason = re.search(r"Exception: (.*)", str(problem))
        raise QueryError(
            f"{found[1].upper()} with LLM calls runs as Spark itself can run it, which failed; ask first, with "
            f"CREATE TABLE ... AS SELECT, and change the table from that: {reason[1] if reason else shown(problem)}"
        ) from problem


def _planned_tree(text: str) -> exp.Expression | None:
    """The parsed statement, if its calls are to be planned."""
    if not mentions_llm_call(text):
        return None
    tree = parse_statement(text, "spark")
    if not isinstance(tree, PLANNED) or not has_llm_call(tree):
        return None
    return as_planned(tree)
