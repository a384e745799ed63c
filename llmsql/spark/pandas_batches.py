"""Before Spark 4.1 a UDF gets pandas: the way from there to Arrow and back.

pandas has no NULL among whole numbers and no zone at Spark's timestamps. Where the fields come as a struct, its type
comes with it, and they are as in Arrow again, except that NaN is NULL. Whole numbers above 2**53 beside a NULL are
rounded by Spark itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from llmsql.spark.partition import PartitionFunction

Members: TypeAlias = tuple[tuple[str, exp.DataType | None], ...]

_Type = exp.DataType.Type
ARROW: dict[object, pa.DataType] = {
    _Type.TEXT: pa.string(),
    _Type.VARCHAR: pa.string(),
    _Type.CHAR: pa.string(),
    _Type.BOOLEAN: pa.bool_(),
    _Type.TINYINT: pa.int8(),
    _Type.SMALLINT: pa.int16(),
    _Type.INT: pa.int32(),
    _Type.BIGINT: pa.int64(),
    _Type.FLOAT: pa.float32(),
    _Type.DOUBLE: pa.float64(),
    _Type.BINARY: pa.binary(),
    _Type.DATE: pa.date32(),
    _Type.TIMESTAMPNTZ: pa.timestamp("us"),
    _Type.TIMESTAMP: pa.timestamp("us"),
    _Type.TIMESTAMPTZ: pa.timestamp("us"),
}
LOCAL_TIMES = (_Type.TIMESTAMP, _Type.TIMESTAMPTZ)  # which pandas has as times of day in the session's zone


def pandas_function(
    function: PartitionFunction,
) -> Callable[[Iterator[tuple[pd.Series, ...]]], Iterator[pd.Series]]:
    """`function` in the form whose type hints tell Spark that it is an iterator pandas UDF of any arity."""
    described = function.call is not None or function.in_place

    def run(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for values in function.values(arrow_columns(batch, described) for batch in batches):
            found = values.to_pylist()
            if pa.types.is_struct(values.type):  # see `user_function`
                found = [[value] for value in found]
            yield pd.Series(found, dtype=object)

    run.__name__ = function.name  # plans and default column names show it
    return run


def arrow_columns(batch: object, described: bool) -> tuple[pa.Array, ...]:
    """The columns of a batch; `described`: the last one tells the type of the struct before it."""
    columns = batch if isinstance(batch, tuple) else (batch,)
    if not described:
        return tuple(_array(column, None, "") for column in columns)
    *others, fields, texts = columns
    if texts.empty:
        return tuple(_array(column, None, "") for column in (*others, fields))
    text, zone = texts.iloc[0].rsplit("|", 1)
    return (*(_array(column, None, "") for column in others), _array(fields, struct_members(text), zone))


def _array(column: object, members: Members | None, zone: str) -> pa.Array:
    if isinstance(column, pd.DataFrame):
        names = [str(name) for name in column.columns]
        if members is None or [name for name, _ in members] != names:
            members = tuple((name, None) for name in names)
        arrays = [_values(column.iloc[:, place], kind, zone) for place, (_, kind) in enumerate(members)]
        return pa.StructArray.from_arrays(arrays, names=names)
    return _values(column, None, zone)


def _values(series: pd.Series, kind: exp.DataType | None, zone: str) -> pa.Array:
    arrow = None if kind is None else arrow_type(kind)
    values = pa.array(series, type=arrow, from_pandas=True)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if arrow is None and pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", values.type.tz))
    if kind is not None and kind.this in LOCAL_TIMES:
        values = pc.assume_timezone(values, zone, ambiguous="earliest", nonexistent="earliest")
    return values


@lru_cache(maxsize=64)
def struct_members(text: str) -> Members | None:
    """Names and types of the members in what Spark's `typeof` says of a struct; None where it cannot be told."""
    try:
        kind = exp.DataType.build(text, dialect="spark")
    except sqlglot.errors.SqlglotError:  # names stand in it as they are
        return None
    if kind.this != _Type.STRUCT:
        return None
    return tuple(
        (member.name, member.kind if isinstance(member.args.get("kind"), exp.DataType) else None)
        for member in kind.expressions
    )


def arrow_type(kind: exp.DataType) -> pa.DataType | None:
    """The Arrow type of a type in Spark's dialect; None for one that is left to be told from the values.

    >>> arrow_type(exp.DataType.build("array<struct<a: int>>", dialect="spark"))
    ListType(list<item: struct<a: int32>>)
    """
    parts = [part.args.get("kind") if isinstance(part, exp.ColumnDef) else part for part in kind.expressions]
    if kind.this == _Type.DECIMAL and len(parts) == 2:
        return pa.decimal128(*(int(part.name) for part in parts))
    if kind.this not in (_Type.ARRAY, _Type.MAP, _Type.STRUCT):
        return ARROW.get(kind.this)
    inner = [arrow_type(part) if isinstance(part, exp.DataType) else None for part in parts]
    if not inner or None in inner:
        return None
    if kind.this == _Type.ARRAY:
        return pa.list_(inner[0])
    if kind.this == _Type.MAP:
        return pa.map_(*inner)
    return pa.struct([(part.name, member) for part, member in zip(kind.expressions, inner)])
