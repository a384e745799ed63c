"""A session: a Spark session on which statements with LLM calls are planned."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

from llmsql.errors import ClosedError, QueryError
from llmsql.explaining import forecast_text
from llmsql.failures import warn_of_failures
from llmsql.forecast import DryRun
from llmsql.model import Model
from llmsql.planner import Plan, Switches, plan_statement
from llmsql.planner.calls import AGGREGATE, has_llm_call
from llmsql.planner.clauses import CHANGING
from llmsql.planner.parsing import (
    ERRORS_FUNCTION,
    mentions_llm_call,
    name_errors_table,
    name_parameters,
    parse_statement,
    query_start,
)
from llmsql.planner.planning import ANY_ORDER
from llmsql.planner.scratch_names import fresh_name, without_prefixes
from llmsql.spark import registration as registering
from llmsql.spark.catalog import SparkCatalog, shown
from llmsql.spark.counters import last_query, note_query
from llmsql.spark.dialect import as_planned
from llmsql.spark.dry_run import SparkDryRunner
from llmsql.spark.in_place import register_in_place
from llmsql.spark.kept_frames import give_back, kept_frames, read_once, sweep
from llmsql.spark.plan_runner import SparkPlanRunner
from llmsql.spark.refusals import BY_SPARK, clear_refusals
from llmsql.spark.registration import Registration
from llmsql.spark.requirements import is_connect
from llmsql.spark.running import interrupt
from llmsql.statistics import QueryStatistics

Parameters = Sequence[Any] | Mapping[str, Any] | None
T = TypeVar("T")
EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(EXTENDED\b|CODEGEN\b|COST\b|FORMATTED\b)?\s*", re.IGNORECASE)
DIRECTORY = re.compile(r"\s*INSERT\s+OVERWRITE\s+(LOCAL\s+)?DIRECTORY\b", re.IGNORECASE)
IN_LAMBDA = "LAMBDA_FUNCTION_WITH_PYTHON_UDF"
# The statements that are planned, and those that Spark runs, with calls that know their options and fields.
PLANNED = (exp.Query, exp.Values, exp.Create, exp.Insert, *CHANGING)

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
        in `kwargs`, and one that cannot be planned run as in Spark itself, with the calls as UDFs, which take no
        options; `last_query.decisions` says why. So do UPDATE, DELETE and MERGE, but with options.

        Raises:
            CallError: a call is written wrongly; the message has its line and column.
            QueryError: a statement with LLM calls does not parse or bind.
            ModelError: the model cannot be loaded or run.
            RowError: a row failed and the call said `on_error => 'fail'`.
            BudgetError: the statement costs more than `max_rows`, `max_tokens` or `max_seconds`.
            InterruptError: `interrupt` was called; after Ctrl-C it is a KeyboardInterrupt.
            ClosedError: the Spark application has ended.
        """
        if not self._registration.is_live:
            raise ClosedError("the Spark application of this session has ended: start one, and register its session")
        sweep(self.spark)
        if ERRORS_FUNCTION in sqlQuery.lower():
            return self._with_errors(sqlQuery, args, kwargs)
        explained = EXPLAIN.match(sqlQuery)
        text = sqlQuery[explained.end() :] if explained else sqlQuery
        if kwargs and mentions_llm_call(text):
            return self._unplanned(QueryError("it has DataFrames in it"), sqlQuery, args, kwargs, spark_knows=True)
        before, text = _cut_directory(text)
        try:
            tree = _planned_tree(text)
        except QueryError as problem:
            return self._unplanned(problem, sqlQuery, args, spark_knows=True)
        if tree is None:
            return self.spark.sql(sqlQuery, args=args, **kwargs)
        if explained is not None:
            return self._explained(sqlQuery, tree, args, f"{explained[0]} {before}")
        run = _runner(self.spark, args)
        started = time.perf_counter()
        statistics = QueryStatistics(sql=sqlQuery)
        if isinstance(tree, CHANGING):
            statistics.decisions.append(BY_SPARK.format(tree.key.upper()))
        note_query(self.spark, statistics)
        is_query = isinstance(tree, exp.Query) and not before
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
                with clear_refusals(sqlQuery):
                    result = runner.run_final(plan, before)
        except (QueryError, PySparkException) as problem:
            # As a function for Spark itself, llm_agg is no aggregate.
            may_run = is_query and AGGREGATE not in sqlQuery.lower()
            result = self._unplanned(problem, sqlQuery, args, may_run=may_run)
        finally:
            runner.drop_views()
            if result is None or not is_query:
                give_back(runner.frames)
            statistics.seconds = time.perf_counter() - started
        if is_query:
            kept_frames(self.spark).keep(result, runner.frames)
        warn_of_failures(statistics)
        return result

    def explain(self, sqlQuery: str, args: Parameters = None) -> str:
        """The plan of a statement with LLM calls as text; no model is asked.

        Raises:
            CallError, QueryError: as `sql`.
        """
        tree = _planned_tree(_cut_directory(sqlQuery)[1])
        if tree is None:
            raise QueryError("the statement has no LLM call that is planned: use DataFrame.explain")
        return self._plan(tree, _runner(self.spark, args), name_parameters(args)).explain()

    def dry_run(self, sqlQuery: str, args: Parameters = None) -> DryRun:
        """What a statement would ask and cost. All its SQL runs but the final statement; no weights are loaded.

        Rows that depend on answers which are not in the result cache are counted at their most. Nothing is kept.

        Raises:
            CallError, QueryError: as `sql`; ModelError: the model has no tokenizer that can be read.
        """
        tree = _planned_tree(_cut_directory(sqlQuery)[1])
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
        sweep(self.spark)
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

    def _explained(self, text: str, tree: exp.Expression, args: Parameters, before: str) -> DataFrame:
        """What EXPLAIN, the words `before` the statement, shows: the plan with what it would ask, and Spark's own plan
        of the final statement."""

        def work(plan: Plan, found: DryRun, runner: SparkDryRunner) -> str:
            own = without_prefixes(runner.run_text(before, plan.final_sql).collect()[0][0])
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

    def _unplanned(
        self,
        problem: Exception,
        text: str,
        args: Any,
        frames: Mapping[str, Any] | None = None,
        *,
        may_run: bool = True,
        spark_knows: bool = False,
    ) -> DataFrame:
        """The statement with its calls as UDFs, where Spark can run it so.

        Args:
            problem: why it is not planned.
            text, args, frames: the statement.
            may_run: False when a part of it may have been done.
            spark_knows: where Spark cannot run it, Spark's reason says more than `problem`.
        """
        reason = shown(problem)
        if IN_LAMBDA in reason:
            reason = "Spark takes no LLM call on the elements of a list: explode the list, ask, and collect it again"
            raise QueryError(reason) from problem
        if not may_run:
            raise problem if isinstance(problem, QueryError) else QueryError(reason) from problem
        statistics = last_query(self.spark)
        if statistics.sql != text:
            statistics = QueryStatistics(sql=text)
        note_query(self.spark, statistics, self._registration.counters)
        statistics.decisions.append(f"not planned, the calls run as UDFs: {reason}")
        try:
            with clear_refusals(text):
                result = self.spark.sql(text, args=args, **(frames or {}))
                _ = result.schema  # over Connect nothing was bound before
        except (QueryError, PySparkException) as refusal:
            said = refusal if spark_knows else problem
            raise said if isinstance(said, QueryError) else QueryError(shown(said)) from said
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


def _cut_directory(text: str) -> tuple[str, str]:
    """The words that have the rows of a query written to files, and the query.

    >>> _cut_directory("INSERT OVERWRITE DIRECTORY '/out' USING csv SELECT llm('Say', a) FROM t")
    ("INSERT OVERWRITE DIRECTORY '/out' USING csv ", "SELECT llm('Say', a) FROM t")
    """
    place = query_start(text, "spark") if DIRECTORY.match(text) and mentions_llm_call(text) else None
    return ("", text) if place is None else (text[:place], text[place:])


def _planned_tree(text: str) -> exp.Expression | None:
    """The parsed statement, if its calls are to be planned."""
    if not mentions_llm_call(text):
        return None
    tree = parse_statement(text, "spark")
    if not isinstance(tree, PLANNED) or not has_llm_call(tree):
        return None
    return as_planned(tree)
