"""The LLM functions over tables of Python programs, without SQL.

    llmsql.llm_filter(frame, "Is the review positive?", columns=["title", "review"])

The result is of the kind that came in. Fields, options and rules are those of the SQL functions.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llmsql import models
from llmsql.answers import arrow_type
from llmsql.arguments import fields_table
from llmsql.budget import Budget
from llmsql.buffering import buffered
from llmsql.errors import CallError, SettingError
from llmsql.functions import FUNCTIONS, Call, check_option_names, make_call
from llmsql.model import Model
from llmsql.operator import evaluate
from llmsql.optimizer import deduplicate
from llmsql.planner.calls import unique_names
from llmsql.planner.group_calls import SEVERAL
from llmsql.progress import ProgressBars
from llmsql.prompt import parse_template
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics, StageStatistics
from llmsql.table_kinds import table_kind

if TYPE_CHECKING:
    from llmsql.session import Session

Columns = str | Sequence[str] | None
ModelLike = str | os.PathLike[str] | Model | None


def llm(
    table: Any,
    prompt: str,
    columns: Columns = None,
    *,
    column: str = "llm",
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """The table with one more column, the model's answers.

    Args:
        table: an Arrow table, record batch or reader, a pandas or polars frame, or a DuckDB relation. A reader is
            answered as it is read, `batch_rows` rows at a time.
        prompt: what is asked of every row; `{name}` puts a column there.
        columns: the columns that the model sees; None is all of them.
        column: the name of the new column.
        model: as for `llmsql.connect`; the last one stays loaded until another is used.
        session: take model, settings and result cache of this session instead; `last_query` counts there, too.
        statistics: is filled with counters and the reasons of failed rows.
        **options: those of the SQL function, and settings of `llmsql.connect`. `max_tokens` is the length of an answer
            where the function has that option.

    Raises:
        CallError: an option or a column is wrong; SettingError: a setting, or the table is none.
        ModelError, RowError, BudgetError: as `Session.sql`.
    """
    return _answered("llm", table, prompt, None, columns, column, model, session, statistics, options)


def llm_filter(
    table: Any,
    prompt: str,
    columns: Columns = None,
    *,
    column: str | None = None,
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """The rows of the table for which the answer is yes; with `column`, all rows and the answers. See `llm`."""
    return _answered("llm_filter", table, prompt, None, columns, column, model, session, statistics, options)


def llm_classify(
    table: Any,
    prompt: str,
    labels: Sequence[str],
    columns: Columns = None,
    *,
    column: str = "llm_classify",
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """The table with one more column, one of the labels for each row. See `llm`."""
    given = list(labels) if not isinstance(labels, str) else labels
    return _answered("llm_classify", table, prompt, given, columns, column, model, session, statistics, options)


def llm_extract(
    table: Any,
    prompt: str,
    schema: str | Mapping[str, Any],
    columns: Columns = None,
    *,
    column: str = "llm_extract",
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """The table with one more column, a struct of what the fields say: of a SQL type, or a JSON schema. See `llm`."""
    return _answered("llm_extract", table, prompt, schema, columns, column, model, session, statistics, options)


def llm_score(
    table: Any,
    prompt: str,
    columns: Columns = None,
    *,
    column: str = "llm_score",
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """The table with one more column, a number from `min` (0) to `max` (10). See `llm`."""
    return _answered("llm_score", table, prompt, None, columns, column, model, session, statistics, options)


def llm_agg(
    table: Any,
    prompt: str,
    columns: Columns = None,
    *,
    by: Columns = None,
    column: str = "llm_agg",
    model: ModelLike = None,
    session: Session | None = None,
    statistics: QueryStatistics | None = None,
    **options: Any,
) -> Any:
    """One answer about all rows, in their order; with `by`, a table of these columns and an answer for each group.

    Groups come in the order of their first rows. Without `columns` the model sees all that are not in `by`. See `llm`.
    """
    asking = _Asking.of("llm_agg", prompt, None, model, session, statistics, options)
    try:
        given = table.read_all() if isinstance(table, pa.RecordBatchReader) else table
        made = asking.groups(given, columns, by, column)
        return made.to_reader() if isinstance(table, pa.RecordBatchReader) and by is not None else made
    finally:
        asking.finish()


def _answered(
    function: str,
    table: Any,
    prompt: str,
    second: Any,
    columns: Columns,
    column: str | None,
    model: ModelLike,
    session: Session | None,
    statistics: QueryStatistics | None,
    options: dict[str, Any],
) -> Any:
    asking = _Asking.of(function, prompt, second, model, session, statistics, options)
    if isinstance(table, pa.RecordBatchReader):
        return _answered_stream(asking, table, columns, column)
    try:
        return asking.table(table, columns, column)
    finally:
        asking.finish()


def _answered_stream(
    asking: _Asking, reader: pa.RecordBatchReader, columns: Columns, column: str | None
) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for held in buffered(reader, asking.settings.batch_rows, len):
                yield from asking.table(pa.Table.from_batches(held), columns, column).to_batches()
        finally:
            asking.finish()

    stream = batches()
    weakref.finalize(stream, asking.release)  # a stream that is dropped unread runs no code of its own
    schema = asking.table(reader.schema.empty_table(), columns, column).schema
    return pa.RecordBatchReader.from_batches(schema, stream)


@dataclass(frozen=True)
class _Asking:
    """One call of a function: what is asked, whom, and where that is counted."""

    call: Call
    model: Model
    settings: Settings
    counted: QueryStatistics
    stage: StageStatistics
    opened: models.ModelSet | None  # for this call alone

    @classmethod
    def of(
        cls,
        function: str,
        prompt: str,
        second: Any,
        model: ModelLike,
        session: Session | None,
        statistics: QueryStatistics | None,
        options: dict[str, Any],
    ) -> _Asking:
        if not isinstance(prompt, str) or not prompt:
            raise CallError(f"{function}: the prompt must be a text that is not empty, not {prompt!r}")
        own = {name: options[name] for name in options if name in FUNCTIONS[function].options}
        given = {name: options[name] for name in options if name not in own}
        check_option_names(FUNCTIONS[function], given, tuple(Settings.__dataclass_fields__))
        call = make_call(function, prompt, second, own)
        counted = QueryStatistics() if statistics is None else statistics
        if session is not None:
            if model is not None:
                raise SettingError("give 'model' or 'session', not both; a session's models have names: add_model")
            settings = session.settings.changed(**given)
            opened = session.models
            session.last_query = counted
        else:
            settings = Settings.make(given)
            opened = models.ModelSet(models.open_model(model, settings), settings)
            _kept.keep(opened.own)
        stage = StageStatistics(call=f"{function}({prompt!r})", place="Python")
        counted.stages.append(stage)
        asked = opened.get(call.model, Budget.of(settings))
        return cls(call, asked, settings, counted, stage, opened if session is None else None)

    def table(self, table: Any, columns: Columns, column: str | None) -> Any:
        """The answer to one table."""
        kind = table_kind(table)
        fields = kind.fields(_named(self.call, kind.names, columns))
        assert self.call.prompt is not None
        parse_template(self.call.prompt, fields.column_names)
        values = self._values(fields)
        if column is None:
            return kind.kept(values.fill_null(False).to_numpy(zero_copy_only=False))
        return kind.with_column(column, values)

    def groups(self, table: Any, columns: Columns, by: Columns, column: str) -> Any:
        """The answers to the groups of one table."""
        kind = table_kind(table)
        keys = [] if by is None else _named(self.call, kind.names, by)
        seen = _named(self.call, kind.names, columns or [name for name in kind.names if name not in keys])
        fields = fields_table(kind.fields(seen).columns, seen)
        self.stage.rows += fields.num_rows
        inverse, first = np.zeros(fields.num_rows, np.int64), np.zeros(1, np.int64)
        if keys:
            unique = deduplicate(kind.fields(keys))
            inverse, first = unique.inverse, unique.first
        bounds = np.cumsum([0, *np.bincount(inverse, minlength=len(first))])
        rows = _items(fields).take(pa.array(np.argsort(inverse, kind="stable")))
        name = fields.column_names[0] if fields.num_columns == 1 else SEVERAL
        lists = pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), rows)
        named = kind.fields(keys).take(pa.array(first)) if keys else pa.table({})
        asked = pa.table([lists, *named.columns], names=unique_names([name, *keys]))
        self.stage.distinct += asked.num_rows
        values = self._evaluated(asked)
        if not keys:
            return values[0].as_py()
        is_first = np.zeros(fields.num_rows, dtype=bool)
        is_first[first] = True
        order = np.argsort(first)  # groups stand in the order of their first rows
        return table_kind(kind.kept(is_first, keys)).with_column(column, values.take(pa.array(order)))

    def release(self) -> None:
        """Give the model back. Idempotent."""
        if self.opened is not None:
            self.opened.release()

    def finish(self) -> None:
        """Give the model back, and tell about failed rows."""
        from llmsql.failures import warn_of_failures

        self.release()
        self.counted.seconds += self.stage.model_seconds
        warn_of_failures(self.counted)

    def _values(self, table: pa.Table) -> pa.Array:
        fields = fields_table(table.columns, table.column_names)
        self.stage.rows += fields.num_rows
        if not fields.num_rows:
            return pa.nulls(0, arrow_type(self.call))
        inverse = None
        if self.settings.deduplicate:
            unique = deduplicate(fields)
            fields, inverse = fields.take(pa.array(unique.first)), unique.inverse
        self.stage.distinct += fields.num_rows
        values = self._evaluated(fields)
        return values if inverse is None else values.take(pa.array(inverse))

    def _evaluated(self, fields: pa.Table) -> pa.Array:
        bars = ProgressBars(self.settings.progress)
        parts = []
        try:
            with bars.stage(self, self.stage.call, fields.num_rows, self.stage) as advance:
                for start in range(0, fields.num_rows, self.settings.batch_rows):
                    part = fields.slice(start, self.settings.batch_rows)
                    asked = evaluate(self.call, part, self.model, self.settings, self.stage, on_progress=advance)
                    parts.append(asked)
        finally:
            bars.close()
        return pa.concat_arrays(parts) if parts else pa.nulls(0, arrow_type(self.call))


def _items(fields: pa.Table) -> pa.Array:
    """Each row as one value: the only field's, or a struct."""
    columns = [_one_chunk(column) for column in fields.columns]
    if len(columns) == 1:
        return columns[0]
    return pa.StructArray.from_arrays(columns, names=fields.column_names)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def _named(call: Call, names: Sequence[str], columns: Columns) -> list[str]:
    wanted = list(names) if columns is None else [columns] if isinstance(columns, str) else list(columns)
    if not wanted:
        raise CallError(f"{call.function} has no column to ask about")
    for name in wanted:
        if name not in names:
            raise CallError(f"{call.function}: the table has no column {name!r}; its columns are: {', '.join(names)}")
    return wanted


class _KeptModel:
    """The model that was used last without a session, so that its weights are not loaded for each call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.model: Model | None = None

    def keep(self, model: Model | None) -> None:
        """Keep this one instead of the one before; None keeps none."""
        with self._lock:
            if model is self.model:
                return
            before, self.model = self.model, None if model is None else models.share(model)
        if before is not None:
            models.release(before)


_kept = _KeptModel()
atexit.register(_kept.keep, None)
