"""Calls that the planner left in a statement: UDFs that know the names of their fields."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql.functions import arrow_udf
from pyspark.sql.pandas.types import from_arrow_type

from llmsql.functions import FUNCTIONS, cached_type
from llmsql.planner.planning import IN_PLACE_PREFIX
from llmsql.spark.partition import PartitionFunction, arrow_function
from llmsql.spark.registration import Registration


def register_in_place(spark: SparkSession, registration: Registration) -> None:
    """Add the functions for calls left in place: (call as JSON, prompt or NULL, fields as a struct)."""
    for function in FUNCTIONS.values():
        own = registration
        body = PartitionFunction(function.name, None, own.model, own.settings, own.counters, in_place=True)
        kind = from_arrow_type(cached_type(function.sql_type).arrow, prefer_timestamp_ntz=True)
        spark.udf.register(IN_PLACE_PREFIX + function.name, arrow_udf(arrow_function(body), kind))
