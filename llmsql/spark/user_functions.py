"""`PartitionFunction` as a Spark UDF: over Arrow from Spark 4.1, over pandas before."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import ArrayType
from pyspark.sql.udf import UserDefinedFunction
from sqlglot import exp

from llmsql.spark.partition import PartitionFunction, arrow_function
from llmsql.spark.requirements import ARROW_UDF, pyspark_version

IN_PLACE_ARGUMENTS = 3  # the call as JSON, the prompt, the fields as a struct


def has_arrow_udf() -> bool:
    """Whether this Spark hands Arrow to UDFs."""
    return pyspark_version() >= ARROW_UDF


def user_function(function: PartitionFunction, kind: pa.DataType) -> UserDefinedFunction:
    """The UDF with values of the Arrow type `kind`; before Spark 4.1 a struct comes as a list of one struct.

    A function that gets its fields as one struct then gets a text about the struct beside it: see `call_function`.
    """
    spark_type = from_arrow_type(kind, prefer_timestamp_ntz=True)
    if has_arrow_udf():
        from pyspark.sql.functions import arrow_udf

        return arrow_udf(arrow_function(function), spark_type)
    from pyspark.sql.functions import pandas_udf

    from llmsql.spark.pandas_batches import pandas_function

    # A column of structs would have to be a pandas.DataFrame, in which a struct cannot be NULL.
    return pandas_udf(pandas_function(function), ArrayType(spark_type) if pa.types.is_struct(kind) else spark_type)


def call_function(function: UserDefinedFunction, kind: pa.DataType, struct: Column) -> Column:
    """A function of one struct on that struct, with its type and the zone of timestamps where pandas is on the way."""
    if has_arrow_udf():
        return function(struct)
    value = function(struct, F.concat(F.typeof(struct), F.lit("|"), F.current_timezone()))
    return value[0] if pa.types.is_struct(kind) else value


def describe_fields(call: exp.Anonymous) -> None:
    """Add, before Spark 4.1, to a call left in place what its function needs: the type of the struct, and the zone."""
    if has_arrow_udf() or len(call.expressions) != IN_PLACE_ARGUMENTS:
        return
    kind = exp.Anonymous(this="typeof", expressions=[call.expressions[-1].copy()])
    parts = [kind, exp.Literal.string("|"), exp.Anonymous(this="current_timezone")]
    call.append("expressions", exp.Anonymous(this="concat", expressions=parts))
