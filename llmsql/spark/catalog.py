"""Spark's knowledge of names and types, for the planner."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T
from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.functions import FUNCTIONS
from llmsql.planner.calls import is_llm_call
from llmsql.planner.catalog import literal_value
from llmsql.planner.hazards import IsText
from llmsql.planner.planning import IN_PLACE_PREFIX
from llmsql.planner.scratch_names import without_prefixes
from llmsql.spark.attempts import attempted
from llmsql.spark.dialect import DIALECT, spark_sql

SPARK_LOG = "SQLQueryContextLogger"
# Also those that answer the same within a statement: a plan is several statements.
VOLATILE = frozenset(
    (
        *("rand", "random", "randn", "randstr", "uniform", "uuid", "shuffle", "monotonically_increasing_id"),
        *("spark_partition_id", "input_file_name", "now", "current_timestamp", "current_date", "curdate"),
        *("localtimestamp", "current_time", "unix_timestamp"),
    )
)
# Spark's names of types, and those of the planner, which are DuckDB's.
TYPES: dict[type[T.DataType], str] = {
    T.StringType: "VARCHAR",
    T.VarcharType: "VARCHAR",
    T.CharType: "VARCHAR",
    T.BooleanType: "BOOLEAN",
    T.ByteType: "TINYINT",
    T.ShortType: "SMALLINT",
    T.IntegerType: "INTEGER",
    T.LongType: "BIGINT",
    T.FloatType: "FLOAT",
    T.DoubleType: "DOUBLE",
    T.DateType: "DATE",
    T.TimestampType: "TIMESTAMP WITH TIME ZONE",
    T.TimestampNTZType: "TIMESTAMP",
    T.BinaryType: "BLOB",
}


class SparkCatalog:
    """Answers the planner's questions on the user's own session, so that its temporary views count.

    Args:
        spark: the session.
        run: runs SQL with the statement's parameters.
    """

    dialect = DIALECT
    in_place_prefix = IN_PLACE_PREFIX
    has_row_numbers = False

    def __init__(self, spark: SparkSession, run: Callable[[str], DataFrame], parameters: Mapping[str, Any]):
        self._spark = spark
        self._run = run
        self._parameters = parameters
        self._aggregates: dict[str, bool] = {}

    def columns(self, query: exp.Query) -> list[tuple[str, str]]:
        """(name, type) of each result column; see `Catalog.columns`. Spark binds, and runs nothing."""
        query = query.transform(_typed_null)
        try:
            with quiet():
                schema = self._run(spark_sql(query)).schema
        except PySparkException as problem:
            raise QueryError(shown(problem)) from problem
        return [(field.name, duckdb_type(field.dataType)) for field in schema.fields]

    def check(self, statement: exp.Expression) -> None:
        """See `Catalog.check`."""
        try:
            text = self._run("EXPLAIN " + spark_sql(statement)).collect()[0][0]
        except PySparkException as problem:
            raise QueryError(shown(problem)) from problem
        if "AnalysisException" in text:  # Spark shows it as the plan
            raise QueryError(text.split("AnalysisException:", 1)[-1].strip())

    def has_table(self, table: exp.Table, *, temporary: bool) -> bool:
        """See `Catalog.has_table`."""
        return bool(self._spark.catalog.tableExists(table.sql(dialect=self.dialect)))

    def binds(self, query: exp.Query) -> bool:
        """See `Catalog.binds`."""
        try:
            self.columns(query)
        except QueryError:
            return False
        return True

    def constant(self, expression: exp.Expression) -> Any:
        """The value of a constant expression; literals and lists of them without asking Spark."""
        literal = literal_value(expression)
        if literal is not None:
            return literal
        if isinstance(expression, exp.Placeholder) and expression.this in self._parameters:
            return self._parameters[expression.this]
        if isinstance(expression, exp.Array):
            return [self.constant(item) for item in expression.expressions]
        try:
            value = self._run(spark_sql(exp.select(expression.copy()))).collect()[0][0]
        except PySparkException as problem:
            raise QueryError(shown(problem)) from problem
        return _without_rows(value)

    def attempt(self, expression: exp.Expression, is_text: IsText, *, wholly: bool = True) -> exp.Expression | None:
        """See `Catalog.attempt`."""
        return attempted(expression, is_text, wholly=wholly)

    def is_volatile(self, function: str) -> bool:
        """See `Catalog.is_volatile`."""
        return function.lower() in VOLATILE

    def is_aggregate(self, function: str) -> bool:
        """See `Catalog.is_aggregate`; Spark describes its own functions by their classes."""
        name = function.lower()
        if name not in self._aggregates:
            described = ""
            if name.isidentifier() and not name.startswith("llm"):
                with quiet(), suppress(PySparkException):  # there is none of that name
                    rows = self._spark.sql(f"DESCRIBE FUNCTION {name}").collect()
                    described = " ".join(str(row[0]) for row in rows)
            self._aggregates[name] = ".expressions.aggregate." in described
        return self._aggregates[name]

    def view(self, table: exp.Table) -> exp.Query | None:
        """None: Spark tells the text of some views only."""
        return None

    def reads_once(self, table: exp.Table) -> bool:
        """See `Catalog.reads_once`: nothing in Spark does."""
        return False

    def has_collations(self) -> bool:
        """See `Catalog.has_collations`; a collation that stands in the statement is seen by the planner."""
        return False


def _without_rows(value: Any) -> Any:
    """A value with dicts in place of Spark's rows."""
    if isinstance(value, T.Row):
        value = value.asDict()
    if isinstance(value, dict):
        return {key: _without_rows(item) for key, item in value.items()}
    return [_without_rows(item) for item in value] if isinstance(value, list) else value


def duckdb_type(kind: T.DataType) -> str:
    """The planner's name of a Spark type."""
    if isinstance(kind, T.DecimalType):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if isinstance(kind, T.ArrayType):
        return duckdb_type(kind.elementType) + "[]"
    if isinstance(kind, T.MapType):
        return f"MAP({duckdb_type(kind.keyType)}, {duckdb_type(kind.valueType)})"
    if isinstance(kind, T.StructType):
        members = ", ".join(f'"{field.name}" {duckdb_type(field.dataType)}' for field in kind.fields)
        return f"STRUCT({members})"
    return TYPES.get(type(kind)) or str(kind.simpleString()).upper()


@contextmanager
def quiet() -> Iterator[None]:
    """While the planner tries what may not bind, PySpark writes no errors to stderr."""
    try:
        from pyspark.logger import PySparkLogger
    except ImportError:  # before Spark 4, which writes nothing
        yield
        return
    log = PySparkLogger.getLogger(SPARK_LOG)  # of a class of its own
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def shown(problem: Exception) -> str:
    """Spark's message without the plan, the text and the codes after it, and without our prefixes."""
    text = str(problem).strip().split("; line ", 1)[0].split("\n", 1)[0]
    text = re.sub(r"\s*SQLSTATE: \w+", "", text)
    return without_prefixes(text.strip())


def _typed_null(node: exp.Expression) -> exp.Expression:
    """A NULL of the call's type that needs the call's arguments: in some places Spark takes no Python function."""
    kind: exp.DataType | str
    if isinstance(node, exp.Cast) and is_llm_call(node.this):
        call, kind = node.this, node.to
    elif is_llm_call(node):
        call, kind = node, FUNCTIONS[node.name.lower()].sql_type
    else:
        return node
    arguments = [argument.transform(_typed_null) for argument in call.expressions]
    null = exp.cast(exp.null(), kind, dialect="duckdb")
    # The arguments are still bound, and choose nothing.
    return exp.If(this=exp.Is(this=exp.Struct(expressions=arguments), expression=exp.null()), true=null, false=null)
