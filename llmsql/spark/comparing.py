"""Maps, which Spark does not compare: they are equal when their sorted entries are."""

from __future__ import annotations

from collections.abc import Collection

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, MapType
from sqlglot import exp

from llmsql.errors import QueryError


def is_map(kind: DataType) -> bool:
    """Whether values of the type are compared by their entries.

    Raises:
        QueryError: there are maps inside the values, and Spark has no way to compare them.
    """
    if "map<" not in kind.simpleString():
        return False
    if isinstance(kind, MapType) and kind.simpleString().count("map<") == 1:
        return True
    raise QueryError(f"Spark cannot compare values of the type {kind.simpleString()}: give to_json(...) of them")


def comparable(column: Column, kind: DataType) -> Column:
    """What is equal when the values are."""
    return F.sort_array(F.map_entries(column)) if is_map(kind) else column


def compare_entries(node: exp.Expression, maps: Collection[str]) -> exp.Expression:
    """A null-safe comparison with one of the columns `maps` as one of entries; any other node as it is."""
    sides = [side for side in (node.this, node.expression) if isinstance(side, exp.Column) and side.name in maps]
    if not sides:
        return node
    entries = [exp.Anonymous(this="map_entries", expressions=[side.copy()]) for side in (node.this, node.expression)]
    this, expression = (exp.Anonymous(this="sort_array", expressions=[side]) for side in entries)
    return exp.NullSafeEQ(this=this, expression=expression)
