"""The LLM functions for DataFrames: what `llm(...)` is in SQL, as functions that return a Column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pyspark.sql import Column
from pyspark.sql import functions as F

from llmsql.errors import CallError
from llmsql.functions import FUNCTIONS, make_call
from llmsql.prompt import parse_template, placeholders
from llmsql.spark.llm_column import LlmColumn, note_call
from llmsql.spark.registration import last_registration

Field: TypeAlias = str | Column


def llm(prompt: str, *fields: Field, **options: Any) -> Column:
    """Free text about the fields of each row, or one of the option `choices`.

    Fields are column names or Columns, `"*"` for all; the model sees them under their names, so give an expression one
    with `.alias("name")`. Without fields, the `{placeholders}` of the prompt name them. The model and the settings are
    those of the last `llmsql.spark.register`.

    Args:
        prompt: what to ask.
        *fields: what to ask about.
        **options: max_tokens, temperature, seed, choices, return_type, schema, regex, system, on_error ('null' or
            'fail'), reorder, unordered, model.

    Raises:
        CallError: no field, or an unknown or ill-typed option; raised here, before Spark runs anything.
        LlmsqlError: nothing is registered.

    Example:
        df.withColumn("summary", llm("Summarise", "title", "body", max_tokens=40))
    """
    return _column("llm", prompt, None, fields, options)


def llm_filter(prompt: str, *fields: Field, **options: Any) -> Column:
    """True or False about the fields of each row. Fields and errors as for `llm`.

    Args:
        prompt: a question to be answered yes or no.
        *fields: what to ask about.
        **options: system, on_error ('null' or 'fail'), reorder, model.

    Example:
        df.filter(llm_filter("Is {review} positive?"))
    """
    return _column("llm_filter", prompt, None, fields, options)


def llm_classify(prompt: str, labels: Sequence[str], *fields: Field, **options: Any) -> Column:
    """Exactly one of `labels` for each row. Fields and errors as for `llm`.

    Args:
        prompt: what to decide.
        labels: at least one text, each once.
        *fields: what to ask about.
        **options: system, on_error ('null' or 'fail'), reorder, model.

    Example:
        df.withColumn("topic", llm_classify("topic of {body}", ["sports", "politics"]))
    """
    return _column("llm_classify", prompt, labels, fields, options)


def llm_extract(prompt: str, schema: str | Mapping[str, Any], *fields: Field, **options: Any) -> Column:
    """A struct of what the fields of each row say. Fields and errors as for `llm`.

    Args:
        prompt: what to look for.
        schema: a SQL type such as `"STRUCT(name VARCHAR, born DATE)"` (in DuckDB's spelling), or a JSON schema.
        *fields: where to look.
        **options: max_tokens, temperature, seed, system, on_error ('null' or 'fail'), reorder, model.

    Example:
        df.select(llm_extract("The person", "STRUCT(name VARCHAR, born DATE)", "text").alias("person"))
    """
    return _column("llm_extract", prompt, schema, fields, options)


def llm_score(prompt: str, *fields: Field, **options: Any) -> Column:
    """A number for each row, from the option `min` (0) to `max` (10). Fields and errors as for `llm`.

    Args:
        prompt: what to judge.
        *fields: what to judge it by.
        **options: min, max, system, on_error ('null' or 'fail'), reorder, model.

    Example:
        df.orderBy(llm_score("How urgent is it?", "title", "body").desc())
    """
    return _column("llm_score", prompt, None, fields, options)


def llm_agg(prompt: str, *fields: Field, order_by: Sequence[Field] = (), **options: Any) -> Column:
    """One answer about all rows of a group, for `df.groupBy(...).agg(...)`. Fields and errors as for `llm`.

    A group of any size is asked within the model's context: in chunks, then about the partial answers. Rows have no
    order in Spark; they come by `order_by`, ascending, and then by their values, so the answer is the same each time.

    Args:
        prompt: what to ask about the rows.
        *fields: what the model sees of each row.
        order_by: column names or Columns that order the rows.
        **options: max_tokens, temperature, seed, distinct_rows, system, on_error ('null' or 'fail'), model.

    Example:
        df.groupBy("product").agg(llm_agg("Summarise the complaints", "review", order_by=["day"]).alias("complaints"))
    """
    _require_prompt("llm_agg", prompt)
    call = make_call("llm_agg", prompt, None, options)
    if not fields:
        raise CallError(f"llm_agg has no field to ask about: {FUNCTIONS['llm_agg'].usage}")
    registration = last_registration()
    call = registration.named(call)
    single = fields[0] if len(fields) == 1 and isinstance(fields[0], str) and fields[0] != "*" else None
    columns = [F.col(field) if isinstance(field, str) else field for field in fields]
    item = columns[0] if single is not None else F.struct(*columns)
    keys = [F.col(key) if isinstance(key, str) else key for key in order_by]
    keyed = F.struct(*(key.alias(f"key{number}") for number, key in enumerate(keys)), item.alias("row"))
    rows = F.transform(F.sort_array(F.collect_list(keyed)), lambda row: row["row"])
    name = "rows" if single is None else single.rsplit(".", 1)[-1].strip("`")
    return registration.column(call, F.struct(rows.alias(name)))


def _require_prompt(name: str, prompt: object) -> None:
    if not isinstance(prompt, str) or not prompt:
        raise CallError(f"{name}: the prompt must be a text that is not empty, not {prompt!r}")


def _column(name: str, prompt: str, second: Any, fields: tuple[Field, ...], options: dict[str, Any]) -> Column:
    _require_prompt(name, prompt)
    call = make_call(name, prompt, second, options)
    registration = last_registration()
    call = registration.named(call)
    # One struct of all fields is how their names reach the worker.
    struct = F.struct(*_columns(name, prompt, fields))
    column = registration.column(call, struct)
    return note_call(column, LlmColumn(call, struct, f"{name}({prompt})", registration))


def _columns(name: str, prompt: str, fields: tuple[Field, ...]) -> list[Column]:
    """The fields as Columns that have the names which the model is to see."""
    if not fields:
        placed = placeholders(prompt)
        if not placed:
            raise CallError(
                f"{name} has no field to ask about: {FUNCTIONS[name].usage}, or name fields in the prompt: "
                f"{{review}} stands for the column review"
            )
        return [F.col(field).alias(field) for field in placed]
    for field in fields:
        if not isinstance(field, (str, Column)):
            raise CallError(f"{name}: a field must be a column's name or a Column, not {field!r}")
    names = [field.rsplit(".", 1)[-1].strip("`") for field in fields if isinstance(field, str)]
    if len(names) == len(fields) and "*" not in names:
        parse_template(prompt, names)  # a placeholder that names no field shows here, not on a worker
    return [F.col(field) if isinstance(field, str) else field for field in fields]
