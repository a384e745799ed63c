"""What Spark refuses of statements with LLM calls that it runs itself, as errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from llmsql.errors import QueryError
from llmsql.planner.parsing import mentions_llm_call
from llmsql.spark.catalog import shown

CHANGING = re.compile(r"\s*(UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
BY_SPARK = "{} is run by Spark itself: its calls run as UDFs, which ask again for each partition and each attempt"
NO_NAMES = "NAMED_PARAMETERS_NOT_SUPPORTED"  # a class of Spark's errors
NOT_KEPT = "INVALID_TEMP_OBJ_REFERENCE"
CANNOT_CHANGE = ("UNSUPPORTED_FEATURE", "Unexpected table relation")  # one of them is an internal error of Spark's
OPTION = re.compile(r"\b(\w+)\s*=>")


def changing(text: str) -> str | None:
    """Which of UPDATE, DELETE and MERGE the statement is, if it has calls."""
    found = CHANGING.match(text) if mentions_llm_call(text) else None
    return None if found is None else found[1].upper()


@contextmanager
def clear_refusals(text: str) -> Iterator[None]:
    """While Spark runs a statement with calls as it stands.

    Raises:
        QueryError: a call has options, or stands in a view that is to stay, or Spark cannot run UPDATE, DELETE or MERGE
            on this table.
    """
    statement = changing(text)
    try:
        yield
    except Exception as problem:  # also Py4J's own
        if not mentions_llm_call(text) or isinstance(problem, QueryError):
            raise
        if NO_NAMES in str(problem):
            options = ", ".join(dict.fromkeys(OPTION.findall(text)))
            raise QueryError(
                f"options ({options}) are for statements that are planned, because Spark's own functions take none; "
                "functions of llmsql.spark that give Columns take them in every DataFrame"
            ) from problem
        if NOT_KEPT in str(problem) and "of the type FUNCTION" in str(problem):
            raise QueryError(
                "Spark keeps no view with LLM calls, whose functions are the session's: CREATE TEMPORARY VIEW, or "
                "CREATE TABLE ... AS SELECT, which keeps the answers"
            ) from problem
        if statement is None:
            raise
        found = re.search(r"Exception: (.*)", str(problem))
        reason = shown(Exception(found[1])) if found else shown(problem)
        if not any(sign in reason for sign in CANNOT_CHANGE):
            raise QueryError(reason) from problem
        raise QueryError(
            f"Spark cannot run {statement} on this table, whose format has to support it; ask first, with "
            f"CREATE TABLE ... AS SELECT, and write the table anew from that: {reason}"
        ) from problem
