"""A session: a DuckDB connection on which statements with LLM calls are planned."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from sqlglot import exp

from llmsql import models
from llmsql.answer_tables import Run
from llmsql.budget import Budget
from llmsql.dry_run import DryRun, DryRunner
from llmsql.duckdb_catalog import DuckDBCatalog, shown
from llmsql.duckdb_functions import ChunkFunctions
from llmsql.errors import ClosedError, LlmsqlError, QueryError, SettingError
from llmsql.execution import PlanRunner
from llmsql.explaining import analyzed_rows, explain_rows
from llmsql.interruption import InterruptError, Interruption
from llmsql.model import Model
from llmsql.planner import Plan, Switches, plan_statement
from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import (
    ERRORS_FUNCTION,
    mentions_llm_call,
    name_errors_table,
    name_parameters,
    parse_statement,
    split_statements,
)
from llmsql.planner.scratch_names import fresh_name
from llmsql.prepared import PreparedStatements
from llmsql.result_cache import ResultCache
from llmsql.scan import caller_variables, run_with_variables
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics

Parameters = Sequence[Any] | Mapping[str, Any] | None
T = TypeVar("T")
LOG = logging.getLogger(__name__)
ERRORS_TABLE = "__llmsql_errors"  # what llm_errors() reads
EXPLAINED_ROWS = 10_000  # of a stage at most, whose tokens EXPLAIN counts
FETCHING = ("fetch", "description", "rowcount", "df", "pl", "arrow", "to_", "torch", "tf", "complete", "abort")
EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\s+|\(\s*(?:ANALYZE|FORMAT)\b[^()]*\)\s*)?", re.IGNORECASE)


class LlmsqlWarning(UserWarning):
    """Rows of a statement failed and are NULL; `llm_errors()` lists the reasons."""


class Session:
    """A DuckDB connection that understands LLM calls; made by `llmsql.connect`.

    `sql`, `query` and `execute` plan the LLM calls of a statement, run them, and hand everything else to DuckDB as it
    is. All other methods and attributes are the connection's own. `last_query` tells what the last statement with LLM
    calls did. A session is a context manager; `close` gives the model back.

    Args:
        connection: where statements run.
        model: an opened model; the session gives it back when it closes.
        settings: see `Settings`.
        owns_connection: close the connection with the session.
        cache: the result cache, if not the one that the settings mean.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        model: Model,
        settings: Settings,
        *,
        owns_connection: bool,
        cache: ResultCache | None = None,
    ):
        self.settings = settings
        self.last_query = QueryStatistics()
        self._connection = connection
        self._owns_connection = owns_connection
        self._closed = False
        self._lock = threading.RLock()
        self._models = models.ModelSet(model, settings, cache)
        self._prepared = PreparedStatements()
        self._functions = ChunkFunctions(connection, self._models, settings)
        self._interruption = Interruption(connection)
        self._results: list[str] = []  # temporary tables behind relations that are still in use
        self._unused: list[str] = []  # ... and those whose last relation is gone
        self._executed: pa.Table | None = None
        self._count_is_open = False
        self._finalizer = weakref.finalize(self, _release, self._functions, self._models)

    # -- statements ---------------------------------------------------------------------------------------------------

    def sql(self, query: str, *, alias: str = "", params: Parameters = None) -> duckdb.DuckDBPyRelation | None:
        """Run a statement; the relation of a query, or of the number of rows written, None where there is neither.

        The LLM calls have run when this returns, so the relation can be shown, fetched and built upon at no cost.

        Raises:
            CallError: a call is written wrongly; the message has its line and column.
            QueryError: a statement with LLM calls does not parse, bind or execute.
            ModelError: the model cannot be loaded or run.
            RowError: a row failed and the call said `on_error := 'fail'`.
            BudgetError: the statement costs more than `max_rows`, `max_tokens` or `max_seconds`.
            InterruptError: `interrupt` was called; after Ctrl-C it is a KeyboardInterrupt.
        """
        with self._lock:
            variables = caller_variables()
            statements = self._statements(query)
            result = None
            for number, (text, tree) in enumerate(statements, start=1):
                given = params if number == len(statements) else None
                variables[ERRORS_TABLE] = self.last_query.errors_to_arrow()
                if tree is None:
                    options: dict[str, Any] = {} if given is None else {"params": given}
                    result = run_with_variables(partial(self._connection.sql, text, **options), variables)
                else:
                    result = self._relation(self._planned(text, tree, given, variables))
            return result.set_alias(alias) if alias and result is not None else result

    query = sql

    def execute(self, query: Any, parameters: Parameters = None) -> Session:
        """Run a statement; fetch its rows with `fetchall`, `df`, `to_arrow_table` and the like. Raises as `sql`."""
        with self._lock:
            variables = caller_variables()
            self._executed = None
            statements = self._statements(query) if isinstance(query, str) else [(query, None)]
            for number, (text, tree) in enumerate(statements, start=1):
                given = parameters if number == len(statements) else None
                variables[ERRORS_TABLE] = self.last_query.errors_to_arrow()
                if tree is None:
                    arguments = (text,) if given is None else (text, given)
                    run_with_variables(partial(self._connection.execute, *arguments), variables)
                    continue
                result = self._planned(text, tree, given, variables)
                if result is not None:
                    self._executed = result.keep
                    self._connection.execute(result.sql())
                    self._count_is_open = result.is_count
            return self

    def explain(self, query: str, *, params: Parameters = None) -> str:
        """The plan of a statement with LLM calls as text; nothing runs and no model is loaded.

        The statement `EXPLAIN ...` shows more: it counts the rows, as `dry_run` does, and has DuckDB's own plan.

        Raises:
            CallError, QueryError: as `sql`.
        """
        with self._lock:
            self._require_open()
            variables = caller_variables()
            tree = parse_statement(query, "duckdb")
            if not has_llm_call(tree):
                return str(run_with_variables(partial(self._connection.sql, query), variables).explain())
            return self._plan(tree, name_parameters(params), variables, self._in_transaction()).explain()

    def dry_run(self, query: str, *, params: Parameters = None) -> DryRun:
        """What a statement would ask and cost. All its SQL runs but the final statement; no weights are loaded.

        Rows that depend on answers which are not in the result cache are counted at their most. Nothing is kept.

        Raises:
            CallError, QueryError: as `sql`; ModelError: the model has no tokenizer that can be read.
        """
        with self._lock:
            self._require_open()
            variables = caller_variables()
            tree = parse_statement(query, "duckdb")
            return self._dry(query, tree, params, variables, lambda plan, found, runner: found)

    def interrupt(self) -> None:
        """Stop the statement that another thread runs on this session, within a step of the engine.

        It ends with an `InterruptError` that says how many rows were done; these are in the result cache.
        """
        self._require_open()
        self._interruption.request()

    def cursor(self) -> Session:
        """Another session on the same database and model, for another thread."""
        self._require_open()
        model = models.share(self._models.own)
        session = Session(self._connection.cursor(), model, self.settings, owns_connection=True, cache=self.cache)
        self._models.share_named(session._models)
        return session

    def add_model(self, name: str, model: str | os.PathLike[str] | Model) -> None:
        """Give a model a name for calls: after `con.add_model("fast", "/path")` they say `model := 'fast'`.

        Args:
            name: how calls call it; a name that is in use is given to the new model.
            model: as for `llmsql.connect`.

        Raises:
            ModelError, SettingError: as `llmsql.connect`.
        """
        self._require_open()
        if not isinstance(name, str) or not name.strip():
            raise SettingError(f"a model's name must be a text that is not empty, not {name!r}")
        self._models.add(name, model)

    @property
    def models(self) -> models.ModelSet:
        """The session's models, for callers that ask them without SQL.

        Raises:
            ClosedError: the session is closed.
        """
        self._require_open()
        return self._models

    @property
    def cache(self) -> ResultCache | None:
        """The result cache: `cache.info()`, `cache.clear()`; None where answers are not kept (`cache=False`)."""
        return self._models.cache

    def close(self) -> None:
        """Drop scratch relations, take the functions off the connection, give the model back. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._executed = None
            with contextlib.suppress(duckdb.Error):
                self._drop_results(self._results)
            self._finalizer()
            if self._owns_connection:
                self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._require_open()
        if not name.startswith(FETCHING):
            self._close_count()
        return getattr(self._connection, name)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("this session is closed; make a new one with llmsql.connect")

    def _close_count(self) -> None:
        """End the result of a statement that only counted its rows; DuckDB 2 refuses other work while one is open."""
        if self._count_is_open:
            self._count_is_open = False
            if hasattr(self._connection, "complete"):
                self._connection.complete()

    def _statements(self, query: str) -> list[tuple[str, exp.Expression | None]]:
        """Each statement of the text, with its tree when it holds LLM calls."""
        self._require_open()
        self._close_count()
        self._drop_results(self._unused)
        if not mentions_llm_call(query) and not self._prepared.may_concern(query):
            return [(query, None)]
        if ERRORS_FUNCTION in query.lower():
            query = name_errors_table(query, "duckdb", ERRORS_TABLE)
        found: list[tuple[str, exp.Expression | None]] = []
        changed = False  # a prepared statement was kept or dropped, of which DuckDB knows nothing
        for text in split_statements(query, "duckdb"):
            explained = EXPLAIN.match(text)
            asked = text[explained.end() :] if explained else text
            if self._prepared.kept(text):
                changed = True
                continue
            tree = self._prepared.executed(asked)
            if tree is None and mentions_llm_call(text):
                tree = parse_statement(asked, "duckdb")
                tree = tree if has_llm_call(tree) else None
            found.append((text, tree))
        return found if changed or any(tree is not None for _, tree in found) else [(query, None)]

    def _plan(
        self, tree: exp.Expression, parameters: dict[str, Any], variables: dict[str, Any], in_transaction: bool
    ) -> Plan:
        run = self._runner(variables)
        catalog = DuckDBCatalog(
            run,
            variables,
            parameters,
            in_transaction=in_transaction,
            in_place_prefix=self._functions.in_place_prefix,
        )
        settings = self.settings
        switches = Switches(settings.short_circuit, settings.order_filters, settings.early_stop, settings.infer_types)
        return plan_statement(tree, catalog, stage_calls=settings.plan, switches=switches)

    def _runner(self, variables: dict[str, Any]) -> Run:
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

    def _planned(
        self, text: str, tree: exp.Expression, params: Parameters, variables: dict[str, Any]
    ) -> _Result | None:
        explained = EXPLAIN.match(text)
        if explained is None:
            return self._run_planned(text, tree, params, variables)
        how = explained.group(1) or ""
        if "analyze" in how.lower():
            return self._run_planned(text, tree, params, variables, analyze=how)
        work = partial(explain_rows, how=how)
        return self._text_result(self._dry(text, tree, params, variables, work, sample=EXPLAINED_ROWS))

    def _run_planned(
        self, text: str, tree: exp.Expression, params: Parameters, variables: dict[str, Any], analyze: str | None = None
    ) -> _Result | None:
        """The life of a query: plan, run the stages, run the final statement, clean up; all in one transaction."""
        started = time.perf_counter()
        statistics = self.last_query = QueryStatistics(sql=text)
        budget = Budget.of(self.settings)
        watch = self._interruption.check
        self._functions.start(statistics, budget, watch)
        parameters = name_parameters(params)
        model_for = partial(self._models.get, budget=budget)
        run = self._runner(variables)
        runner = PlanRunner(run, self._read, parameters, model_for, self.settings, statistics, watch)
        result: _Result | None = None
        with self._tidied(runner, statistics) as begin:
            # Planned outside of our own transaction: an attempt to bind that fails would abort it.
            in_transaction = self._in_transaction()
            plan = self._plan(tree, parameters, variables, in_transaction)
            begin(in_transaction)
            statistics.plan = plan.explain()
            kinds = (len(plan.steps), len(plan.stages), len(plan.in_place))
            LOG.info("planned in %.3f s: %d steps, %d stages, %d calls in place", time.perf_counter() - started, *kinds)
            LOG.debug("the plan of %s\n%s", text, statistics.plan)
            runner.run_steps(plan)
            if analyze:
                rows = analyzed_rows(plan, runner, statistics, how=analyze)
            else:
                result = self._finish(plan, runner)
        statistics.seconds = time.perf_counter() - started
        counts = (statistics.model_calls, statistics.cached, sum(stage.failed for stage in statistics.stages))
        LOG.info("done in %.2f s: %d rows asked, %d from the cache, %d failed", statistics.seconds, *counts)
        warn_of_failures(statistics)
        return self._text_result(rows) if analyze else result

    def _dry(
        self,
        text: str,
        tree: exp.Expression,
        params: Parameters,
        variables: dict[str, Any],
        work: Callable[[Plan, DryRun, PlanRunner], T],
        sample: int | None = None,
    ) -> T:
        """Run what needs no model, in a transaction that leaves nothing behind; then `work` on what was found."""
        watch = self._interruption.check
        self._functions.start(QueryStatistics(), None, watch, silent=True)
        parameters = name_parameters(params)
        run = self._runner(variables)
        runner = DryRunner(run, self._read, parameters, self._models.get, self.settings, watch, sample)
        with self._tidied(runner, QueryStatistics(), keep=False) as begin:
            in_transaction = self._in_transaction()
            plan = self._plan(tree, parameters, variables, in_transaction)
            begin(in_transaction)
            return work(plan, runner.result(text, plan), runner)

    @contextlib.contextmanager
    def _tidied(
        self, runner: PlanRunner, statistics: QueryStatistics, *, keep: bool = True
    ) -> Iterator[Callable[[bool], None]]:
        """While a statement runs, which can be interrupted. What the runner made is dropped; errors become ours.

        The function that it gives begins a transaction, unless it is told that the user has one open; it is committed
        at the end, or rolled back after an error, or where nothing is to be kept.
        """
        own_transaction = False

        def begin(in_transaction: bool) -> None:
            nonlocal own_transaction
            if not in_transaction:  # one of our own, so that stages and final statement see the same rows
                self._connection.execute("BEGIN TRANSACTION")
                own_transaction = True

        with self._interruption.statement():
            try:
                yield begin
                runner.drop_scratch()
                self._interruption.close()
                if own_transaction:
                    self._connection.execute("COMMIT" if keep else "ROLLBACK")
            except BaseException as problem:
                stopped = self._interruption.requested
                LOG.info("stopped by %s", type(problem).__name__)
                self._interruption.close()
                self._abandon(own_transaction, runner)
                cause = self._functions.error or problem
                if stopped:
                    raise self._stopped(statistics) from problem
                if isinstance(cause, duckdb.Error):
                    raise QueryError(shown(cause)) from cause
                raise cause from (problem if cause is not problem else problem.__cause__)

    def _in_transaction(self) -> bool:
        """Whether the user has a transaction open: then two statements have the same transaction number."""
        first, second = (self._connection.execute("SELECT txid_current()").fetchall() for _ in range(2))
        return bool(first == second)

    def _abandon(self, own_transaction: bool, runner: PlanRunner) -> None:
        with contextlib.suppress(duckdb.Error):
            if own_transaction:
                self._connection.execute("ROLLBACK")
            else:
                runner.drop_scratch()

    def _stopped(self, statistics: QueryStatistics) -> BaseException:
        """The error of a statement that was interrupted."""
        done = ", ".join(
            f"{stage.asked + stage.cached:,} of {stage.distinct:,} for {stage.call}" for stage in statistics.stages
        )
        rows = statistics.model_calls + statistics.cached
        text = f"interrupted after {rows:,} rows{' (' + done + ')' if done else ''}; "
        if self.cache is None:
            text += "their answers are not kept (the session has no result cache)"
        else:
            text += "their answers are in the result cache, so the same statement goes on from there"
        return KeyboardInterrupt(text) if self._interruption.by_signal else InterruptError(text)

    def _finish(self, plan: Plan, runner: PlanRunner) -> _Result | None:
        """Run the final statement; the rows of a query go to a temporary table that its relation reads."""
        if not plan.is_query:
            rows = runner.run_with_parameters(plan.final_sql)
            names = [column[0] for column in self._connection.description or []]
            if not rows and not plan.returns_rows:
                return None
            result = self._returned(names, rows)
            result.is_count = not plan.returns_rows
            return result
        described = runner.run_with_parameters(f"DESCRIBE {plan.final_sql}")
        result = self._new_result([row[0] for row in described])
        columns = ", ".join(f"c{number}" for number in range(len(described)))
        runner.run_with_parameters(f"CREATE TEMP TABLE {result.name}({columns}) AS {plan.final_sql}")
        return result

    def _returned(self, names: list[str], rows: list[tuple[Any, ...]]) -> _Result:
        """The rows of RETURNING; they come with the statement that writes, and cannot be selected again."""
        result = self._new_result(names)
        types = [str(column[1]) for column in self._connection.description or []]
        columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(types))
        self._connection.execute(f"CREATE TEMP TABLE {result.name}({columns})")
        if rows:
            marks = ", ".join("?" * len(names))
            self._connection.executemany(f"INSERT INTO {result.name} VALUES ({marks})", rows)
        return result

    def _text_result(self, rows: list[tuple[str, str]]) -> _Result:
        result = self._new_result(["explain_key", "explain_value"])
        self._connection.execute(f"CREATE TEMP TABLE {result.name} (c0 VARCHAR, c1 VARCHAR)")
        self._connection.executemany(f"INSERT INTO {result.name} VALUES (?, ?)", rows)
        return result

    def _new_result(self, names: list[str]) -> _Result:
        # The name stands in DuckDB's message about a relation that is used after the session was closed.
        name = fresh_name("result_until_the_session_closes")
        result = _Result(name, tuple(names), pa.table({"c0": pa.nulls(1)}))
        self._results.append(result.name)
        weakref.finalize(result.keep, self._unused.append, result.name).atexit = False
        return result

    def _relation(self, result: _Result | None) -> duckdb.DuckDBPyRelation | None:
        if result is None:
            return None
        # The relation, and all that are built on it, hold the Arrow table `keep`: when it goes, the rows can go too.
        keep = f"{result.name}_keep"  # no table of the user has such a name; it would come before the variable
        sql = result.sql(f"{result.name} UNION ALL BY NAME SELECT NULL AS c0 FROM {keep} WHERE false")
        return run_with_variables(partial(self._connection.sql, sql), {keep: result.keep})

    def _drop_results(self, names: list[str]) -> None:
        while names:
            name = names.pop()
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")
            if name in self._results:
                self._results.remove(name)


def warn_of_failures(statistics: QueryStatistics) -> None:
    """Warn where rows failed, with their count and the first reason."""
    failed = sum(stage.failed for stage in statistics.stages)
    if failed:
        first = statistics.errors[0]
        warnings.warn(
            f"{failed} of {statistics.model_calls} rows failed and are NULL; the first: {first.error} "
            "(all reasons: SELECT * FROM llm_errors())",
            LlmsqlWarning,
            stacklevel=5,
        )


class _Result:
    """The rows of a query in a temporary table with columns c0, c1, ...; it lives as long as `keep`."""

    def __init__(self, name: str, columns: tuple[str, ...], keep: pa.Table):
        self.name = name
        self.columns = columns
        self.keep = keep
        self.is_count = False  # all that it says is how many rows were written

    def sql(self, source: str | None = None) -> str:
        """A query for the rows under their own names."""
        names = ", ".join(
            f'c{number} AS "{name.replace(chr(34), chr(34) * 2)}"' for number, name in enumerate(self.columns)
        )
        return f"SELECT {names} FROM ({'FROM ' + source if source else 'FROM ' + self.name})"


def _release(functions: ChunkFunctions, opened: models.ModelSet) -> None:
    functions.remove()
    with contextlib.suppress(LlmsqlError):
        opened.release()
