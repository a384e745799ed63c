"""The LLM operator: fields in, values out. The planner's stages, the plain UDFs and Spark all end here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmsql.answers import arrow_type
from llmsql.asking import column_value, outcomes, record_failure
from llmsql.errors import CallError
from llmsql.functions import Call
from llmsql.model import Model
from llmsql.reduction import reduce_groups
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics
from llmsql.types import is_list


def evaluate(
    call: Call,
    fields: pa.Table,
    model: Model,
    settings: Settings,
    statistics: StageStatistics,
    *,
    prompts: pa.ChunkedArray | pa.Array | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> pa.Array:
    """Answer `call` for every row of `fields`; the result has the row order of the input.

    Rows whose fields are all NULL are NULL and never reach the model. Equal rows are asked once (unless
    `settings.deduplicate` is off). A row that fails is NULL and counted in `statistics`, or stops the statement when
    `on_error` is 'fail', or has its reason beside its value when that is 'return'.

    Args:
        call: what to ask.
        fields: one column per field, [rows]; of an aggregate, a list of the rows of each group, then what names it.
        model: who answers.
        settings: the session's settings.
        statistics: counters to add to; `asked` and the failures are counted here.
        prompts: a prompt for each row, [rows], when `call.prompt` is None; a NULL prompt gives NULL.
        on_progress: called with the number of rows newly done.

    Raises:
        RowError: a row failed and `on_error` is 'fail'.
    """
    _check_unordered(call, fields)
    values: list[Any] = [None] * fields.num_rows
    groups = _by_prompt(call, fields.select([0]) if call.is_aggregate else fields, prompts)
    if on_progress is not None:
        on_progress(fields.num_rows - sum(len(rows) for _, rows in groups))
    for prompted, rows in groups:
        answer = reduce_groups if prompted.is_aggregate else _answer_rows
        answer(prompted, fields, rows, values, model, settings, statistics, on_progress)
    return pa.array(values, arrow_type(call))


def _check_unordered(call: Call, fields: pa.Table) -> None:
    for name in call.unordered:
        if name not in fields.column_names:
            raise CallError(
                f"{call.function}: option 'unordered' names {name!r}, and the fields are: "
                f"{', '.join(fields.column_names)}"
            )
        kind = fields.schema.field(name).type
        if not is_list(kind):
            raise CallError(f"{call.function}: option 'unordered' names {name!r}, which is no list but {kind}")


def _by_prompt(call: Call, fields: pa.Table, prompts: Any) -> list[tuple[Call, np.ndarray]]:
    """The rows to ask, grouped by their prompt."""
    present = np.zeros(fields.num_rows, dtype=bool)
    for column in fields.columns:
        present |= pc.is_valid(column).to_numpy(zero_copy_only=False)
    if call.prompt is not None:
        return [(call, np.flatnonzero(present))]
    if pa.types.is_nested(prompts.type):
        raise CallError(f"{call.function}: the prompt must be a text, not {prompts.type}")
    encoded = pc.cast(prompts if isinstance(prompts, pa.ChunkedArray) else pa.chunked_array([prompts]), pa.string())
    codes = encoded.combine_chunks().dictionary_encode()
    indices = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return [
        (call.with_prompt(text), np.flatnonzero(present & (indices == code)))
        for code, text in enumerate(codes.dictionary.to_pylist())
    ]


def _answer_rows(
    call: Call,
    fields: pa.Table,
    rows: np.ndarray,
    values: list[Any],
    model: Model,
    settings: Settings,
    statistics: StageStatistics,
    on_progress: Callable[[int], None] | None,
) -> None:
    if rows.size == 0:
        return
    asked = fields.take(pa.array(rows))
    copies: list[np.ndarray] | None = None
    if settings.deduplicate:
        from llmsql.optimizer import deduplicate

        unique = deduplicate(asked)
        if len(unique.first) < len(rows):
            by_distinct = np.argsort(unique.inverse, kind="stable")
            bounds = np.searchsorted(unique.inverse[by_distinct], np.arange(len(unique.first) + 1))
            copies = np.split(by_distinct, bounds[1:-1])
            asked = asked.take(pa.array(unique.first))
    with closing(outcomes(call, asked, model, settings, statistics)) as found:
        for outcome in found:
            targets = rows[outcome.row : outcome.row + 1] if copies is None else rows[copies[outcome.row]]
            if outcome.error is not None:
                shown = asked.slice(outcome.row, 1).to_pylist()[0]
                record_failure(call, shown, outcome.error, settings, statistics)
            for target in targets:
                values[target] = column_value(call, outcome.value, outcome.error)
            if on_progress is not None:
                on_progress(len(targets))
