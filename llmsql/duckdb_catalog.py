"""DuckDB's knowledge of names and types, for the planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from llmsql.errors import QueryError
from llmsql.planner.catalog import literal_value
from llmsql.planner.hazards import IsText
from llmsql.planner.parsing import PARAMETER, parameters_of
from llmsql.planner.scratch_names import without_prefixes

Run = Callable[..., list[tuple[Any, ...]]]
COLLATES = (
    "SELECT current_setting('default_collation') <> '' "
    "OR EXISTS (FROM duckdb_tables() WHERE sql ILIKE '%collate%') "
    "OR EXISTS (FROM duckdb_views() WHERE NOT internal AND sql ILIKE '%collate%')"
)


class DuckDBCatalog:
    """Answers the planner's questions on the user's own connection, so that temp tables and open transactions count.

    Args:
        run: runs SQL with named parameters where the caller's variables can be seen.
        scope: the caller's variables.
        parameters: the statement's parameter values by name.
        in_transaction: whether the user has a transaction open.
        in_place_prefix: of the session's functions for calls left in place.
    """

    dialect = "duckdb"
    has_row_numbers = True
    _built_in: _Functions | None = None

    def __init__(
        self,
        run: Run,
        scope: Mapping[str, Any],
        parameters: Mapping[str, Any],
        *,
        in_transaction: bool,
        in_place_prefix: str,
    ):
        self.in_place_prefix = in_place_prefix
        self._run = run
        self._scope = scope
        self._parameters = parameters
        self._in_transaction = in_transaction
        self._functions: _Functions | None = None
        self._views: list[tuple[Any, ...]] | None = None
        self._constants: dict[str, Any] = {}
        self._collates: bool | None = None

    def columns(self, query: exp.Query) -> list[tuple[str, str]]:
        """(name, type) of each result column; see `Catalog.columns`."""
        sql = "DESCRIBE " + query.sql(dialect=self.dialect)
        try:
            return [(row[0], row[1]) for row in self._run(sql, self._parameters_of(query))]
        except duckdb.Error as problem:
            raise QueryError(shown(problem)) from problem

    def check(self, statement: exp.Expression) -> None:
        """See `Catalog.check`."""
        try:
            self._run("EXPLAIN " + statement.sql(dialect=self.dialect), self._parameters_of(statement))
        except duckdb.Error as problem:
            raise QueryError(shown(problem)) from problem

    def has_table(self, table: exp.Table, *, temporary: bool) -> bool:
        """See `Catalog.has_table`."""
        name, schema, database = table.name.lower(), table.db.lower(), table.catalog.lower()
        found = self._run(
            "SELECT lower(database_name), lower(schema_name), temporary, lower(database_name) = "
            "lower(current_database()), lower(schema_name) = lower(current_schema()) FROM ("
            "SELECT database_name, schema_name, temporary FROM duckdb_tables() WHERE lower(table_name) = $name "
            "UNION ALL "
            "SELECT database_name, schema_name, temporary FROM duckdb_views() WHERE lower(view_name) = $name)",
            {"name": name},
        )
        for in_database, in_schema, is_temporary, current_database, current_schema in found:
            if is_temporary or temporary:
                match = is_temporary and temporary
            elif database:
                match = (in_database, in_schema) == (database, schema)
            elif schema:  # of the current database, or the main schema of a database
                match = (in_schema == schema and current_database) or (in_database, in_schema) == (schema, "main")
            else:
                match = current_database and current_schema
            if match:
                return True
        return False

    def binds(self, query: exp.Query) -> bool:
        """See `Catalog.binds`; a statement that fails aborts the transaction that the user may have open."""
        if self._in_transaction:
            return False
        try:
            self.columns(query)
        except QueryError:
            return False
        return True

    def constant(self, expression: exp.Expression) -> Any:
        """The value of a constant expression; literals without asking DuckDB."""
        literal = literal_value(expression)
        if literal is not None:
            return literal
        query = exp.Select(expressions=[expression.copy()])
        sql = query.sql(dialect=self.dialect)
        if sql not in self._constants:
            try:
                self._constants[sql] = self._run(sql, self._parameters_of(query))[0][0]
            except duckdb.Error as problem:
                raise QueryError(shown(problem)) from problem
        return self._constants[sql]

    def attempt(self, expression: exp.Expression, is_text: IsText, *, wholly: bool = True) -> exp.Expression:
        """See `Catalog.attempt`."""
        return exp.Try(this=expression)

    def is_volatile(self, function: str) -> bool:
        """See `Catalog.is_volatile`."""
        return function.lower() in self._functions_named(function).volatile

    def is_aggregate(self, function: str) -> bool:
        """See `Catalog.is_aggregate`."""
        return function.lower() in self._functions_named(function).aggregate

    def view(self, table: exp.Table) -> exp.Query | None:
        """The parsed definition of a view; None for tables, files and Python objects."""
        if not table.name or isinstance(table.this, exp.Func):
            return None
        if self._views is None:
            self._views = self._run(
                "SELECT lower(view_name), lower(schema_name), sql FROM duckdb_views() WHERE NOT internal", {}
            )
        wanted = table.name.lower(), table.db.lower()
        found = [sql for name, schema, sql in self._views if name == wanted[0] and wanted[1] in ("", schema)]
        if not found or not found[0]:
            return None
        try:
            tree = sqlglot.parse_one(found[0], dialect=self.dialect)
        except SqlglotError:
            return None
        query = tree.args.get("expression") if isinstance(tree, exp.Create) else None
        return query if isinstance(query, exp.Query) else None

    def reads_once(self, table: exp.Table) -> bool:
        """Whether the name is one of the caller's variables and holds a stream."""
        value = self._scope.get(table.name) if not table.db else None
        return type(value).__name__ in ("RecordBatchReader", "Scanner")

    def has_collations(self) -> bool:
        """See `Catalog.has_collations`; DESCRIBE does not tell, but what the user wrote does."""
        if self._collates is None:
            relations = [value for value in self._scope.values() if isinstance(value, duckdb.DuckDBPyRelation)]
            written_so = any("collate" in relation.sql_query().lower() for relation in relations)
            self._collates = written_so or bool(self._run(COLLATES, {})[0][0])
        return self._collates

    def _parameters_of(self, query: exp.Expression) -> dict[str, Any]:
        return parameters_of(query, self._parameters) if self._parameters else {}

    def _functions_named(self, function: str) -> _Functions:
        """DuckDB's own functions; or, for another name, all that there are now: the user's, and those of extensions."""
        if DuckDBCatalog._built_in is None:
            DuckDBCatalog._built_in = self._list_functions("internal")
        if function.lower() in DuckDBCatalog._built_in.names or not function.isidentifier():
            return DuckDBCatalog._built_in
        if self._functions is None:
            self._functions = self._list_functions("true")
        return self._functions

    def _list_functions(self, which: str) -> _Functions:
        rows = self._run(
            f"SELECT DISTINCT lower(function_name), function_type, stability FROM duckdb_functions() WHERE {which}", {}
        )
        return _Functions(
            names=frozenset(name for name, _, _ in rows),
            aggregate=frozenset(name for name, kind, _ in rows if kind == "aggregate"),
            volatile=frozenset(name for name, _, stability in rows if stability == "VOLATILE"),
        )


@dataclass(frozen=True)
class _Functions:
    names: frozenset[str]
    aggregate: frozenset[str]
    volatile: frozenset[str]


def shown(problem: Exception) -> str:
    """DuckDB's message without the hint lines on the rewritten text and our own names, which the user never wrote."""
    lines = str(problem).strip().splitlines()
    kept = [line for line in lines if line.strip(" ^~") and not line.startswith("LINE ")]
    text = without_prefixes(" ".join(line.strip() for line in kept))
    return text.replace(PARAMETER, "$")
