"""A session: a DuckDB connection on which statements with LLM calls are planned."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from llmsql import models
from llmsql.duckdb_functions import ChunkFunctions
from llmsql.errors import ClosedError, LlmsqlError, SettingError
from llmsql.forecast import DryRun
from llmsql.interruption import Interruption
from llmsql.model import Model
from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import parse_statement
from llmsql.result_cache import ResultCache
from llmsql.results import Result, Results
from llmsql.scan import caller_variables, run_with_variables
from llmsql.settings import Settings
from llmsql.statement_runner import Parameters, StatementRunner
from llmsql.statements import ERRORS_TABLE, Statement, Statements
from llmsql.statistics import QueryStatistics

FETCHING = ("fetch", "description", "rowcount", "df", "pl", "arrow", "to_", "torch", "tf", "complete", "abort")


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
        self._statements = Statements()
        self._functions = ChunkFunctions(connection, self._models, settings)
        self._interruption = Interruption(connection)
        self._results = Results(connection)
        self._runner = StatementRunner(
            connection, self._models, self._functions, self._interruption, self._results, settings
        )
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
            result = None
            for statement, given in self._each(query, params):
                variables[ERRORS_TABLE] = self.last_query.errors_to_arrow()
                if statement.tree is None:
                    options: dict[str, Any] = {} if given is None else {"params": given}
                    result = run_with_variables(partial(self._connection.sql, statement.text, **options), variables)
                else:
                    result = self._results.relation(self._planned(statement, given, variables))
            return result.set_alias(alias) if alias and result is not None else result

    query = sql

    def execute(self, query: Any, parameters: Parameters = None) -> Session:
        """Run a statement; fetch its rows with `fetchall`, `df`, `to_arrow_table` and the like. Raises as `sql`."""
        with self._lock:
            variables = caller_variables()
            self._executed = None
            for statement, given in self._each(query, parameters):
                variables[ERRORS_TABLE] = self.last_query.errors_to_arrow()
                if statement.tree is None:
                    arguments = (statement.text,) if given is None else (statement.text, given)
                    run_with_variables(partial(self._connection.execute, *arguments), variables)
                    continue
                result = self._planned(statement, given, variables)
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
            return self._runner.plan(tree, params, variables).explain()

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
            return self._runner.dry(query, tree, params, variables, lambda plan, found, runner: found)

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
                self._results.drop()
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

    def _each(self, query: Any, params: Parameters) -> Iterator[tuple[Statement, Parameters]]:
        """The statements of a text, the last with the parameters; or a statement that DuckDB has parsed."""
        self._require_open()
        self._close_count()
        self._results.drop_unused()
        statements = self._statements.of(query) if isinstance(query, str) else [Statement(query)]
        for number, statement in enumerate(statements, start=1):
            yield statement, params if number == len(statements) else None

    def _planned(self, statement: Statement, params: Parameters, variables: dict[str, Any]) -> Result | None:
        if not statement.runs:
            return self._runner.explain(statement, params, variables)
        self.last_query = QueryStatistics(sql=statement.text)
        return self._runner.run(statement, params, variables, self.last_query)


def _release(functions: ChunkFunctions, opened: models.ModelSet) -> None:
    functions.remove()
    with contextlib.suppress(LlmsqlError):
        opened.release()
