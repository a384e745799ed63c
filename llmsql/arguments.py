"""The arguments of a function that an SQL engine calls itself, as columns: the prompt, the labels, the fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llmsql.errors import CallError
from llmsql.functions import FUNCTIONS, Call, Function, cached_type, make_call
from llmsql.planner.calls import unique_names
from llmsql.types import is_list


def answer_arguments(
    function: Function,
    columns: Sequence[pa.ChunkedArray],
    answer: Callable[[Call, pa.Table, pa.ChunkedArray], pa.Array],
) -> pa.Array:
    """The values of `function(*columns)`, [rows]: constants such as the prompt come as columns too.

    Values whose type depends on the call (llm_extract) come as text, which SQL can cast to it.

    Args:
        function: what is called.
        columns: prompt, labels or schema where the function has them, then the fields; [rows] each. Fields have no
            names here, except for those in structs.
        answer: (call without its prompt, fields, prompts) to values; called once for each list of labels or schema.

    Raises:
        CallError: no field, a prompt that is no text, labels or a schema that are none.
    """
    fields = fields_table(columns[function.leading :], [])
    if not fields.num_columns:
        raise CallError(f"{function.name} has no field to ask about: {function.usage}")
    if function.name == "llm_agg" and not is_list(fields.schema.types[0]):
        raise CallError(
            f"llm_agg is no aggregate for the SQL engine itself: give it the rows of a group as a list, such as "
            f"llm_agg('…', list({{'name': name}})), not {fields.schema.types[0]}"
        )
    prompts = columns[0]
    if pa.types.is_nested(prompts.type):
        raise CallError(f"{function.name}: the prompt must be a text, not {prompts.type}: {function.usage}")
    prompts = prompts.cast(pa.string())
    second = columns[1] if function.leading == 2 else None
    if second is not None and function.second == "labels" and not is_list(second.type):
        raise CallError(f"{function.name}: labels must be a list of texts, not {second.type}: {function.usage}")
    values: list[Any] = [None] * fields.num_rows
    for constant, rows in _by_second(second, fields.num_rows):
        call = make_call(function.name, None, constant)
        taken = pa.array(rows)
        found = sql_texts(call, answer(call, fields.take(taken), prompts.take(taken)))
        for row, value in zip(rows, found.to_pylist()):
            values[row] = value
    return pa.array(values, cached_type(function.sql_type).arrow)


def answer_in_place(
    columns: Sequence[pa.ChunkedArray], answer: Callable[[Call, pa.Table, pa.ChunkedArray], pa.Array]
) -> pa.Array:
    """The values of a call that the planner left in place, [rows].

    Args:
        columns: the call as JSON, its prompt where that varies, the fields as a struct; [rows] each.
        answer: (call, fields, prompts) to values.
    """
    call = Call.from_json(columns[0][0].as_py())
    return sql_texts(call, answer(call, struct_fields(columns[2]), columns[1]))


def sql_texts(call: Call, values: pa.Array) -> pa.Array:
    """Values of a call as the SQL engine takes them from a function: as text where the type depends on the call."""
    if call.sql_type == FUNCTIONS[call.function].sql_type:
        return values
    return pa.array([call.value_type.text_of(value) for value in values.to_pylist()], pa.string())


def fields_table(columns: Sequence[pa.ChunkedArray], names: Sequence[str]) -> pa.Table:
    """Columns as named fields; the members of a struct become fields of their own, a NULL struct gives NULLs.

    Columns without a name in `names` are called field1, field2, ...
    """
    found: list[tuple[str, pa.ChunkedArray]] = []
    rows = len(columns[0]) if columns else 0
    for number, column in enumerate(columns):
        name = names[number] if number < len(names) else f"field{number + 1}"
        if not pa.types.is_struct(column.type):
            found.append((name, column))
            continue
        struct = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        chunks = struct.chunks if isinstance(struct, pa.ChunkedArray) else [struct]
        for index in range(column.type.num_fields):
            member = column.type.field(index)
            arrays = [chunk.flatten()[index] for chunk in chunks]
            found.append((member.name or f"{name}_{index + 1}", pa.chunked_array(arrays, member.type)))
    if not found:
        return pa.table({})
    table = pa.table([column for _, column in found], names=unique_names([name for name, _ in found]))
    assert table.num_rows == rows
    return table


def struct_fields(struct: pa.ChunkedArray) -> pa.Table:
    """The members of a struct as fields; a member that is a struct itself becomes its members, as everywhere."""
    named = fields_table([struct], [])
    return fields_table(named.columns, named.column_names)


def _by_second(second: pa.ChunkedArray | None, rows: int) -> list[tuple[Any, np.ndarray]]:
    """The rows, grouped by their list of labels or their schema; nearly always one group."""
    if second is None:
        return [(None, np.arange(rows))]
    groups: dict[str, tuple[Any, list[int]]] = {}
    for row, value in enumerate(second.to_pylist()):
        groups.setdefault(repr(value), (value, []))[1].append(row)
    return [(value, np.array(members)) for value, members in groups.values()]
