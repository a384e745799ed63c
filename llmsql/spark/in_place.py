"""Calls that the planner left in a statement: UDFs that know the names of their fields."""

from __future__ import annotations

from pyspark.sql import SparkSession

from llmsql.functions import FUNCTIONS
from llmsql.planner.planning import IN_PLACE_PREFIX
from llmsql.spark.registration import Registration


def register_in_place(spark: SparkSession, registration: Registration) -> None:
    """Add the functions for calls left in place: (call as JSON, prompt or NULL, fields as a struct)."""
    for name in FUNCTIONS:
        spark.udf.register(IN_PLACE_PREFIX + name, registration.function(name, in_place=True))
