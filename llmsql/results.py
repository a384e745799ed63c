"""The rows of planned statements: temporary tables that live as long as somebody can read them."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from llmsql.execution import PlanRunner
from llmsql.planner import Plan
from llmsql.planner.scratch_names import fresh_name
from llmsql.scan import run_with_variables


class Result:
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
        return f"SELECT {names} FROM (FROM {source or self.name})"


class Results:
    """The results of one session's statements that are still in use."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self._connection = connection
        self._names: list[str] = []  # temporary tables behind relations that are still in use
        self._unused: list[str] = []  # ... and those whose last relation is gone

    def of_plan(self, plan: Plan, runner: PlanRunner) -> Result | None:
        """Run the final statement of a plan whose steps ran; None where it has no rows to show."""
        if not plan.is_query:
            rows = runner.run_with_parameters(plan.final_sql)
            names = [column[0] for column in self._connection.description or []]
            if not rows and not plan.returns_rows:
                return None
            result = self._returned(names, rows)
            result.is_count = not plan.returns_rows
            return result
        described = runner.run_with_parameters(f"DESCRIBE {plan.final_sql}")
        result = self._new([row[0] for row in described])
        columns = ", ".join(f"c{number}" for number in range(len(described)))
        runner.run_with_parameters(f"CREATE TEMP TABLE {result.name}({columns}) AS {plan.final_sql}")
        return result

    def of_text(self, rows: list[tuple[str, str]]) -> Result:
        """The rows (key, text) of EXPLAIN."""
        result = self._new(["explain_key", "explain_value"])
        self._connection.execute(f"CREATE TEMP TABLE {result.name} (c0 VARCHAR, c1 VARCHAR)")
        self._connection.executemany(f"INSERT INTO {result.name} VALUES (?, ?)", rows)
        return result

    def relation(self, result: Result | None) -> duckdb.DuckDBPyRelation | None:
        """The result as a relation; its rows stay as long as it, and all that are built on it."""
        if result is None:
            return None
        # They hold the Arrow table `keep`: when it goes, the rows can go too.
        keep = f"{result.name}_keep"  # no table of the user has such a name; it would come before the variable
        sql = result.sql(f"{result.name} UNION ALL BY NAME SELECT NULL AS c0 FROM {keep} WHERE false")
        return run_with_variables(partial(self._connection.sql, sql), {keep: result.keep})

    def drop_unused(self) -> None:
        """Drop the rows that nobody can read any more."""
        self._drop(self._unused)

    def drop(self) -> None:
        """Drop the rows of all results."""
        self._drop(self._names)

    def _returned(self, names: list[str], rows: list[tuple[Any, ...]]) -> Result:
        """The rows of RETURNING; they come with the statement that writes, and cannot be selected again."""
        result = self._new(names)
        types = [str(column[1]) for column in self._connection.description or []]
        columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(types))
        self._connection.execute(f"CREATE TEMP TABLE {result.name}({columns})")
        if rows:
            marks = ", ".join("?" * len(names))
            self._connection.executemany(f"INSERT INTO {result.name} VALUES ({marks})", rows)
        return result

    def _new(self, names: list[str]) -> Result:
        # The name stands in DuckDB's message about a relation that is used after the session was closed.
        name = fresh_name("result_until_the_session_closes")
        result = Result(name, tuple(names), pa.table({"c0": pa.nulls(1)}))
        self._names.append(result.name)
        weakref.finalize(result.keep, self._unused.append, result.name).atexit = False
        return result

    def _drop(self, names: list[str]) -> None:
        while names:
            name = names.pop()
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")
            if name in self._names:
                self._names.remove(name)
