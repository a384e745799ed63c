"""The life of a statement with LLM calls: plan, ask, run the rest, tidy up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from sqlglot import exp

from llmsql.answer_tables import Run
from llmsql.budget import Budget
from llmsql.dry_run import DryRunner
from llmsql.duckdb_catalog import DuckDBCatalog
from llmsql.duckdb_functions import ChunkFunctions
from llmsql.execution import PlanRunner
from llmsql.explaining import analyzed_rows, explain_rows
from llmsql.failures import warn_of_failures
from llmsql.forecast import DryRun
from llmsql.interruption import Interruption
from llmsql.models import ModelSet
from llmsql.planner import Plan, Switches, plan_statement
from llmsql.planner.parsing import name_parameters
from llmsql.results import Result, Results
from llmsql.scan import run_with_variables
from llmsql.settings import Settings
from llmsql.statements import Statement
from llmsql.statistics import QueryStatistics
from llmsql.transaction import Transactions

Parameters = Sequence[Any] | Mapping[str, Any] | None
T = TypeVar("T")
LOG = logging.getLogger(__name__)
EXPLAINED_ROWS = 10_000  # of a stage at most, whose tokens EXPLAIN counts


class StatementRunner:
    """Plans and runs the statements of one session that hold LLM calls.

    Args:
        connection: where they run.
        models: who answers.
        functions: on the connection, for calls that are left in place.
        interruption: stops statements.
        results: where their rows go.
        settings: the session's.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        models: ModelSet,
        functions: ChunkFunctions,
        interruption: Interruption,
        results: Results,
        settings: Settings,
    ):
        self._connection = connection
        self._models = models
        self._functions = functions
        self._interruption = interruption
        self._results = results
        self._settings = settings
        keeps_answers = models.cache is not None
        self._transactions = Transactions(connection, functions, interruption, keeps_answers=keeps_answers)

    def plan(self, tree: exp.Expression, params: Parameters, variables: dict[str, Any]) -> Plan:
        """The plan of a statement; nothing runs.

        Args:
            tree: the statement, which is rewritten.
            params: the statement's parameters.
            variables: of the caller, which DuckDB may read as tables.

        Raises:
            CallError, QueryError: as `plan_statement`.
        """
        return self._plan(tree, name_parameters(params), variables, self._transactions.is_open())

    def run(
        self, statement: Statement, params: Parameters, variables: dict[str, Any], statistics: QueryStatistics
    ) -> Result | None:
        """The life of a query: plan, run the stages, run the final statement, clean up; all in one transaction.

        Returns:
            The rows of a query, or of EXPLAIN ANALYZE; None where there are none to show.

        Raises:
            LlmsqlError: as `Session.sql`.
        """
        assert statement.tree is not None
        started = time.perf_counter()
        budget = Budget.of(self._settings)
        watch = self._interruption.check
        self._functions.start(statistics, budget, watch)
        parameters = name_parameters(params)
        model_for = partial(self._models.get, budget=budget)
        sql = self._sql(variables)
        runner = PlanRunner(sql, self._read, parameters, model_for, self._settings, statistics, watch)
        result: Result | None = None
        with self._transactions.statement(runner, statistics) as begin:
            # Planned outside of our own transaction: an attempt to bind that fails would abort it.
            in_transaction = self._transactions.is_open()
            plan = self._plan(statement.tree, parameters, variables, in_transaction)
            begin(in_transaction)
            statistics.plan = plan.explain()
            kinds = (len(plan.steps), len(plan.stages), len(plan.in_place))
            LOG.info("planned in %.3f s: %d steps, %d stages, %d calls in place", time.perf_counter() - started, *kinds)
            LOG.debug("the plan of %s\n%s", statement.text, statistics.plan)
            runner.run_steps(plan)
            if statement.explain is None:
                result = self._results.of_plan(plan, runner)
            else:
                explained = analyzed_rows(plan, runner, statistics, how=statement.explain)
        statistics.seconds = time.perf_counter() - started
        counts = (statistics.model_calls, statistics.cached, sum(stage.failed for stage in statistics.stages))
        LOG.info("done in %.2f s: %d rows asked, %d from the cache, %d failed", statistics.seconds, *counts)
        warn_of_failures(statistics)
        return result if statement.explain is None else self._results.of_text(explained)

    def explain(self, statement: Statement, params: Parameters, variables: dict[str, Any]) -> Result:
        """The rows of EXPLAIN: the plan, what it would ask, and DuckDB's own plan.

        Raises:
            CallError, ModelError, QueryError: as `dry`.
        """
        assert statement.tree is not None
        assert statement.explain is not None
        work = partial(explain_rows, how=statement.explain)
        rows = self.dry(statement.text, statement.tree, params, variables, work, sample=EXPLAINED_ROWS)
        return self._results.of_text(rows)

    def dry(
        self,
        text: str,
        tree: exp.Expression,
        params: Parameters,
        variables: dict[str, Any],
        work: Callable[[Plan, DryRun, PlanRunner], T],
        sample: int | None = None,
    ) -> T:
        """Run what needs no model, in a transaction that leaves nothing behind; then `work` on what was found.

        `sample`: rows of a stage at most whose tokens are counted.

        Raises:
            CallError, QueryError: as when the statement runs; ModelError: no tokenizer can be read.
        """
        watch = self._interruption.check
        self._functions.start(QueryStatistics(), None, watch, silent=True)
        parameters = name_parameters(params)
        sql = self._sql(variables)
        runner = DryRunner(sql, self._read, parameters, self._models.get, self._settings, watch, sample)
        with self._transactions.statement(runner, QueryStatistics(), keep=False) as begin:
            in_transaction = self._transactions.is_open()
            plan = self._plan(tree, parameters, variables, in_transaction)
            begin(in_transaction)
            return work(plan, runner.result(text, plan), runner)

    def _plan(
        self, tree: exp.Expression, parameters: dict[str, Any], variables: dict[str, Any], in_transaction: bool
    ) -> Plan:
        catalog = DuckDBCatalog(
            self._sql(variables),
            variables,
            parameters,
            in_transaction=in_transaction,
            in_place_prefix=self._functions.in_place_prefix,
        )
        settings = self._settings
        switches = Switches(settings.short_circuit, settings.order_filters, settings.early_stop, settings.infer_types)
        return plan_statement(tree, catalog, stage_calls=settings.plan, switches=switches)

    def _sql(self, variables: dict[str, Any]) -> Run:
        """What runs SQL of a plan, which can read the caller's variables as tables."""

        def run(sql: str, parameters: Mapping[str, Any], **more: Any) -> list[tuple[Any, ...]]:
            arguments = (sql, dict(parameters)) if parameters else (sql,)
            with self._interruption.in_duckdb():
                # Fetched to the end: DuckDB 2 refuses the next statement while a result is open.
                result = run_with_variables(partial(self._connection.execute, *arguments), {**variables, **more})
                rows: list[tuple[Any, ...]] = result.fetchall()
                return rows

        return run

    def _read(self, sql: str) -> pa.Table:
        with self._interruption.in_duckdb():
            return self._connection.sql(sql).to_arrow_table()
