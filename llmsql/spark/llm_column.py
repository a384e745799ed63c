"""What a Column of an LLM function asks, remembered at the Column, so that it can also be planned."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column

from llmsql.functions import Call
from llmsql.spark.registration import Registration

NOTE = "_llmsql_call"


@dataclass(frozen=True)
class LlmColumn:
    """A call, and its fields as one struct; `text` is for people."""

    call: Call
    fields: Column
    text: str
    registration: Registration


def note_call(column: Column, call: LlmColumn) -> Column:
    """The column, which now knows what it asks."""
    vars(column)[NOTE] = call
    return column


def call_of(column: object) -> LlmColumn | None:
    """What a column asks; None for one that is no LLM function's own."""
    return vars(column).get(NOTE) if isinstance(column, Column) else None
