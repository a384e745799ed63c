"""The LLM functions as DuckDB UDFs: optimized chunk by chunk, at most 2,048 rows at a time."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable

import duckdb
import pyarrow as pa

from llmsql.answers import arrow_type
from llmsql.arguments import answer_arguments, answer_in_place
from llmsql.budget import Budget
from llmsql.functions import FUNCTIONS, Call, Function
from llmsql.models import ModelSet
from llmsql.operator import evaluate
from llmsql.planner.planning import IN_PLACE_PREFIX
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics, StageStatistics


class ChunkFunctions:
    """The UDFs of one connection, and the counters of what they asked.

    DuckDB keeps functions with the database, so sessions on one database meet: the public names, and those that views
    use, belong to whoever came first; calls left in place run under names with a prefix of the session's own.
    `error` keeps the last exception raised inside a UDF: DuckDB shows only its text.
    """

    _numbers = itertools.count(1)

    def __init__(self, connection: duckdb.DuckDBPyConnection, models: ModelSet, settings: Settings):
        self.settings = settings
        self.statistics = QueryStatistics()
        self.error: BaseException | None = None
        self._models = models
        # The connection owns its functions, and they hold this object: a strong reference back would keep both forever.
        self._connection = weakref.ref(connection)
        self._budget: Budget | None = None
        self._watchers: list[Callable[[], None]] = []
        self._silent = False
        self._by_call: dict[Call, StageStatistics] = {}
        self._lock = threading.Lock()
        self.names: list[str] = []
        self.in_place_prefix = f"{IN_PLACE_PREFIX}session_{next(self._numbers)}_"
        for function in FUNCTIONS.values():
            self._create(connection, function.name, self._plain(function), function)
            for prefix in (IN_PLACE_PREFIX, self.in_place_prefix):
                self._create(connection, prefix + function.name, self._in_place, function)

    def start(
        self, statistics: QueryStatistics, budget: Budget | None, watch: Callable[[], None], *, silent: bool = False
    ) -> None:
        """Count into `statistics` and spend from `budget` from now on; `watch` is called while the model works.

        `silent`: no model is asked, all answers are NULL.
        """
        with self._lock:
            self.statistics, self._by_call, self.error = statistics, {}, None
            self._budget = budget
            self._watchers = [watch]
            self._silent = silent

    def remove(self) -> None:
        """Take the functions off the connection; nothing happens when it is gone or closed already."""
        connection, names = self._connection(), self.names
        self.names = []
        if connection is None:
            return
        for name in names:
            with contextlib.suppress(duckdb.Error, RuntimeError):
                connection.remove_function(name)

    def _create(
        self, connection: duckdb.DuckDBPyConnection, name: str, body: Callable[..., pa.Array], function: Function
    ) -> None:
        with contextlib.suppress(duckdb.Error):
            connection.remove_function(name)  # an earlier session on the same connection
        with contextlib.suppress(duckdb.CatalogException):  # a session on another connection to the same database
            connection.create_function(
                name, self._guarded(body), None, function.sql_type, type="arrow", null_handling="special"
            )
            self.names.append(name)

    def _guarded(self, body: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
        def run(*columns: pa.ChunkedArray) -> pa.Array:
            try:
                return body(*columns)
            except BaseException as problem:
                self.error = problem
                raise

        return run

    def _plain(self, function: Function) -> Callable[..., pa.Array]:
        """`llm(prompt, field…)` as SQL calls it; DuckDB does not pass the names of columns, only those in structs."""

        def body(*columns: pa.ChunkedArray) -> pa.Array:
            return answer_arguments(function, columns, self._evaluate)

        return body

    def _in_place(self, calls: pa.ChunkedArray, prompts: pa.ChunkedArray, fields: pa.ChunkedArray) -> pa.Array:
        """A call that the planner left in place; see `answer_in_place`."""
        return answer_in_place([calls, prompts, fields], self._evaluate)

    def _evaluate(self, call: Call, fields: pa.Table, prompts: pa.ChunkedArray) -> pa.Array:
        if self._silent:
            return pa.nulls(fields.num_rows, arrow_type(call))
        name = f"{call.function}({call.prompt or '…'})"
        statistics = StageStatistics(call=name, place="in place", more=True, watchers=[*self._watchers])
        try:
            model = self._models.get(call.model, self._budget)
            return evaluate(call, fields, model, self.settings, statistics, prompts=prompts.cast(pa.string()))
        finally:
            self._count(call, fields.num_rows, statistics)

    def _count(self, call: Call, rows: int, chunk: StageStatistics) -> None:
        with self._lock:
            total = self._by_call.get(call)
            if total is None:
                total = self._by_call[call] = StageStatistics(call=chunk.call, place=chunk.place)
                self.statistics.stages.append(total)
            chunk.rows, chunk.distinct = rows, chunk.asked
            total.add(chunk)
