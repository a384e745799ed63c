"""One answer for all rows of a group, however many: a tree of questions, each within the model's context.

The rows of a group, in their order, are cut into chunks that fit in one prompt. Each chunk gives a partial answer; the
partial answers, in their order, are cut into chunks in turn and asked the same question, until one is left. Chunks are
filled from the left, so rows added at the end of a group leave the chunks before them, and their cached answers, as
they are. The chunks of all groups on one level are one batch for the model, and equal chunks are asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmsql.asking import column_value, outcomes, record_failure
from llmsql.functions import Call
from llmsql.model import Measure, Model, measure
from llmsql.optimizer import deduplicate
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

PARTIAL = "partial_answers"  # what the model sees them under


@dataclass
class _Group:
    """A group while it is reduced: the places of its items among those of its level, or why it failed."""

    row: int
    items: np.ndarray
    error: str | None = None
    answer: Any = None
    parts: list[Any] = field(default_factory=list)


def reduce_groups(
    call: Call,
    fields: pa.Table,
    rows: np.ndarray,
    values: list[Any],
    model: Model,
    settings: Settings,
    statistics: StageStatistics,
    on_progress: Callable[[int], None] | None,
) -> None:
    """Answer an aggregate for some rows of `fields`, each of which is a group; the answers are put in `values`.

    A group none of whose rows has a value is NULL. A group with a row that does not fit in a prompt fails.

    Args:
        call: with its prompt.
        fields: a list column with the rows of each group, then columns that say which group it is.
        rows: the groups to answer.
        values: for the answers, by group.
        model, settings, statistics, on_progress: as for `llmsql.operator.evaluate`.

    Raises:
        RowError: a group failed and `on_error` is 'fail'.
    """
    if rows.size == 0:
        return
    groups, items = _filled_groups(call, fields.column(0).take(pa.array(rows)).combine_chunks(), rows)

    def finish(group: _Group) -> None:
        values[group.row] = column_value(call, group.answer, group.error)
        if group.error is not None:
            record_failure(call, _named(fields, group.row), group.error, settings, statistics)
        if on_progress is not None:
            on_progress(1)

    if on_progress is not None:
        on_progress(len(rows) - len(groups))
    name, is_leaf = fields.column_names[0], True
    while groups:
        measured = _measured(call, name, items, model, settings)
        chunks = list(_cut(groups, measured, is_leaf))
        _ask(call, name, items, chunks, model, settings, statistics)
        waiting: list[_Group] = []
        texts: list[str] = []
        for group in groups:
            if group.error is None and len(group.parts) == 1:
                group.answer = group.parts[0]
            elif group.error is None:
                group.items = np.arange(len(texts), len(texts) + len(group.parts))
                texts += group.parts
                group.parts = []
                waiting.append(group)
                continue
            finish(group)
        groups, items, name, is_leaf = waiting, pa.array(texts, pa.string()), PARTIAL, False


def _filled_groups(call: Call, lists: pa.Array, rows: np.ndarray) -> tuple[list[_Group], pa.Array]:
    """The groups that have rows with a value, each with the places of these rows among those returned."""
    items = lists.flatten()
    present = _has_value(items)
    items = items.filter(pa.array(present))
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    kept = np.concatenate([[0], np.cumsum(present)])[np.concatenate([[0], ends])]
    inverse = deduplicate(pa.table({"": items})).inverse if call.distinct_rows else None
    groups = []
    for row, start, stop in zip(rows.tolist(), kept, kept[1:]):
        places = np.arange(start, stop)
        if inverse is not None:
            places = start + np.sort(np.unique(inverse[start:stop], return_index=True)[1])
        if places.size:
            groups.append(_Group(row, places))
    return groups, items


def _has_value(items: pa.Array) -> np.ndarray:
    """Whether an item has a field that is not NULL."""
    if not pa.types.is_struct(items.type):
        return np.asarray(pc.is_valid(items))
    present = np.zeros(len(items), dtype=bool)
    for member in items.flatten():
        present |= pc.is_valid(member).to_numpy(zero_copy_only=False)
    return present


def _measured(call: Call, name: str, items: pa.Array, model: Model, settings: Settings) -> Measure:
    """The sizes of all items, of which only distinct ones are measured."""
    unique = deduplicate(pa.table({"": items}))
    found = measure(model, call, name, items.take(pa.array(unique.first)), settings)
    return Measure(found.room, [found.sizes[number] for number in unique.inverse])


@dataclass(frozen=True)
class _Chunk:
    """Items of one group that are asked about together; their answer is `group.parts[place]`."""

    group: _Group
    place: int
    items: np.ndarray


def _cut(groups: list[_Group], measured: Measure, is_leaf: bool) -> Iterator[_Chunk]:
    """The chunks of all groups; groups that cannot be cut get an error. A partial answer alone is taken as it is."""
    for group in groups:
        sizes = [measured.sizes[place] for place in group.items]
        pieces = _pieces(sizes, measured.room)
        longest = max(range(len(sizes)), key=sizes.__getitem__)
        if measured.room is not None and is_leaf and sizes[longest] > measured.room:
            group.error = (
                f"row {longest + 1} of the group's {len(sizes)} is {sizes[longest]:,} tokens long, and the model's "
                f"context leaves {max(measured.room, 0):,} for rows beside prompt and answer: shorten the row, the "
                "prompt or max_tokens"
            )
        elif not is_leaf and len(pieces) == len(sizes):
            group.error = (
                f"no two partial answers fit in one prompt: the context leaves {max(measured.room or 0, 0):,} tokens "
                f"for them, and the shortest neighbours are {min(a + b for a, b in pairwise(sizes)):,} long: "
                "lower max_tokens"
            )
        else:
            group.parts = [None] * len(pieces)
            for place, (start, stop) in enumerate(pieces):
                yield _Chunk(group, place, group.items[start:stop])


def _pieces(sizes: list[int], room: int | None) -> list[tuple[int, int]]:
    """(start, stop) of runs that each fit in the room, or are one item, filled from the left."""
    if room is None:
        return [(0, len(sizes))]
    found, start, used = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and used + size > room:
            found.append((start, place))
            start, used = place, 0
        used += size
    return [*found, (start, len(sizes))]


def _ask(
    call: Call,
    name: str,
    items: pa.Array,
    chunks: list[_Chunk],
    model: Model,
    settings: Settings,
    statistics: StageStatistics,
) -> None:
    """Put the answers of the chunks, or the first error, in their groups."""
    asked: list[_Chunk] = []
    for chunk in chunks:
        if name == PARTIAL and len(chunk.items) == 1:
            chunk.group.parts[chunk.place] = items[int(chunk.items[0])].as_py()
        else:
            asked.append(chunk)
    if not asked:
        return
    offsets = np.cumsum([0, *(len(chunk.items) for chunk in asked)])
    taken = items.take(pa.array(np.concatenate([chunk.items for chunk in asked])))
    table = pa.table({name: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), taken)})
    equal = [[number] for number in range(len(asked))]
    if settings.deduplicate:
        unique = deduplicate(table)
        table = table.take(pa.array(unique.first))
        equal = [[] for _ in unique.first]
        for number, distinct in enumerate(unique.inverse):
            equal[distinct].append(number)
    with closing(outcomes(call, table, model, settings, statistics)) as found:
        for outcome in found:
            for number in equal[outcome.row]:
                group = asked[number].group
                group.parts[asked[number].place] = outcome.value
                group.error = group.error or outcome.error


def _named(fields: pa.Table, row: int) -> dict[str, Any]:
    """What shows the user which group it is: its keys, or its rows where there are none."""
    values: dict[str, Any] = fields.slice(row, 1).to_pylist()[0]
    keys = {name: value for place, (name, value) in enumerate(values.items()) if place}
    return keys or values
