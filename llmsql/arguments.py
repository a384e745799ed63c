"""The arguments of a function that an SQL engine calls itself, as columns: the prompt, the labels, the fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llmsql.answers import ARROW_TYPES
from llmsql.errors import CallError
from llmsql.functions import Call, Function, make_call
from llmsql.planner.calls import unique_names


def answer_arguments(
    function: Function,
    columns: Sequence[pa.ChunkedArray],
    answer: Callable[[Call, pa.Table, pa.ChunkedArray], pa.Array],
) -> pa.Array:
    """The values of `function(*columns)`, [rows]: constants such as the prompt come as columns too.

    Args:
        function: what is called.
        columns: prompt, labels where the function has them, then the fields; [rows] each. Fields have no names here,
            except for those in structs.
        answer: (call without its prompt, fields, prompts) to values; called once for each list of labels.

    Raises:
        CallError: no field, a prompt that is no text, or labels that are none.
    """
    fields = fields_table(columns[function.leading :], [])
    if not fields.num_columns:
        raise CallError(f"{function.name} has no field to ask about: {function.usage}")
    prompts = columns[0]
    if pa.types.is_nested(prompts.type):
        raise CallError(f"{function.name}: the prompt must be a text, not {prompts.type}: {function.usage}")
    prompts = prompts.cast(pa.string())
    labels = columns[1] if function.leading == 2 else None
    if labels is not None and not _is_list(labels.type):
        raise CallError(f"{function.name}: labels must be a list of texts, not {labels.type}: {function.usage}")
    values: list[Any] = [None] * fields.num_rows
    for choices, rows in _by_labels(labels, fields.num_rows):
        call = make_call(function.name, None, choices)
        taken = pa.array(rows)
        for row, value in zip(rows, answer(call, fields.take(taken), prompts.take(taken)).to_pylist()):
            values[row] = value
    return pa.array(values, ARROW_TYPES[function.sql_type])


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


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _by_labels(labels: pa.ChunkedArray | None, rows: int) -> list[tuple[Any, np.ndarray]]:
    """The rows, grouped by their list of labels; nearly always one group."""
    if labels is None:
        return [(None, np.arange(rows))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, value in enumerate(labels.to_pylist()):
        groups.setdefault(tuple(value) if isinstance(value, list) else (value,), []).append(row)
    return [(list(choices), np.array(members)) for choices, members in groups.items()]
