"""Canonical JSON text of Arrow values, one kernel call per type instead of a Python loop per value.

Equal values of a column have equal text, and different values never share one: numbers and booleans are JSON literals
(-0.0 is 0.0; NaN, Infinity and -Infinity are spelled so), text keeps its unicode and escapes only what JSON demands,
dates and times are quoted ISO 8601, binary is quoted base64 behind a prefix, structs are objects without their NULL
members, lists are arrays in which NULL items are `null`. JSON (Arrow's extension type) is shown as JSON, its numbers as
they are written.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import OptimizerError
from .literals import TEXT, join, quote, quote_name, text
from .time_rendering import render_dates, render_durations, render_intervals, render_times, render_timestamps

# A text, a sign, or white space between them.
_JSON_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[,:]|\s+')
_JSON_SPACED = {",": ", ", ":": ": "}


def render_values(values: pa.Array) -> pa.Array:
    """The JSON text of every value, large_string; NULL stays NULL. Raises OptimizerError for unknown types."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.UuidType):
            return _render_uuids(values)
        return _render_json(values.storage) if kind.extension_name == "arrow.json" else render_values(values.storage)
    for matches, renderer in _RENDERERS:
        if matches(kind):
            return renderer(values)
    raise OptimizerError(f"values of Arrow type {kind} have no JSON text; cast the column to text first")


def _render_nulls(values: pa.Array) -> pa.Array:
    return pa.nulls(len(values), TEXT)


def _render_literals(values: pa.Array) -> pa.Array:
    return pc.cast(values, TEXT)


def _render_floats(values: pa.Array) -> pa.Array:
    if pa.types.is_float16(values.type):
        values = pc.cast(values, pa.float32())
    texts = pc.replace_substring_regex(pc.cast(values, TEXT), r"^(-?\d+)$", r"\1.0")
    for arrow_text, json_text in (
        ("-0.0", "0.0"),
        ("nan", "NaN"),
        ("-nan", "NaN"),
        ("inf", "Infinity"),
        ("-inf", "-Infinity"),
    ):
        texts = pc.if_else(pc.equal(texts, text(arrow_text)), text(json_text), texts)
    return texts


def _render_texts(values: pa.Array) -> pa.Array:
    return quote(pc.cast(values, TEXT))


def _render_binary(values: pa.Array) -> pa.Array:
    encoded = [
        None if v is None else '"base64:' + base64.b64encode(v).decode("ascii") + '"' for v in values.to_pylist()
    ]
    return pa.array(encoded, TEXT)


def _render_uuids(values: pa.Array) -> pa.Array:
    storage = values.storage.to_pylist()
    return pa.array([None if v is None else f'"{uuid.UUID(bytes=v)}"' for v in storage], TEXT)


def _render_json(values: pa.Array) -> pa.Array:
    """JSON as it is, on one line and spaced as the rest; what is none is a text."""
    return pa.array([None if v is None else _json_line(v) for v in values.to_pylist()], TEXT)


def _json_line(value: str) -> str:
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    return _JSON_PART.sub(lambda part: _JSON_SPACED.get(part[0], part[0] if part[0][0] == '"' else ""), value)


def _render_dictionaries(values: pa.Array) -> pa.Array:
    return render_values(values.dictionary).take(values.indices)


def _render_run_ends(values: pa.Array) -> pa.Array:
    return render_values(pc.run_end_decode(values))


def _render_structs(values: pa.Array) -> pa.Array:
    names = [field.name for field in values.type]
    members = []
    for position, name in enumerate(names):
        texts = render_values(values.field(position))
        if names.count(name) > 1:  # leaving one of two namesakes out would not tell which
            texts = texts.fill_null("null")
        members.append(join(text(quote_name(name) + ": "), texts, text(", ")).fill_null(""))
    # no JSON value ends with a comma or a blank, so only the last separator is trimmed
    inner = pc.ascii_rtrim(join(*members), ", ") if members else pa.array([""] * len(values), TEXT)
    return pc.if_else(values.is_valid(), join(text("{"), inner, text("}")), pa.scalar(None, TEXT))


def _render_lists(values: pa.Array) -> pa.Array:
    items = render_values(values.flatten()).fill_null("null")
    return join(text("["), _join_runs(items, pc.list_value_length(values)), text("]"))


def _render_maps(values: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(pc.cast(values, pa.list_(pa.struct(_entry_fields(values.type)))))
    first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
    keys, items = values.keys[first:last], values.items[first:last]
    key_texts = render_values(keys)
    if len(key_texts) and not is_text(values.type.key_type):
        key_texts = quote(key_texts)
    pairs = join(key_texts, text(": "), render_values(items).fill_null("null"))
    return join(text("{"), _join_runs(pairs, lengths), text("}"))


def _entry_fields(kind: pa.DataType) -> list[pa.Field]:
    return [pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)]


def _join_runs(texts: pa.Array, lengths: pa.Array) -> pa.Array:
    """Consecutive runs of texts joined with commas, one per length; a NULL length gives NULL."""
    counts = lengths.fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    runs = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), texts)
    return pc.if_else(lengths.is_valid(), pc.binary_join(runs, text(", ")), pa.scalar(None, TEXT))


def _render_unions(values: pa.Array) -> pa.Array:
    """A union value is an object with the name of its member, so that equal values of two members stay apart."""
    tags = values.type_codes.to_numpy()
    places = values.offsets.to_numpy() if values.type.mode == "dense" else np.arange(len(values))
    members: list[pa.Array] = []
    starts: dict[int, int] = {}
    for position, tag in enumerate(values.type.type_codes):
        starts[tag] = sum(len(member) for member in members)
        texts = render_values(values.field(position))
        members.append(join(text("{" + quote_name(values.type.field(position).name) + ": "), texts, text("}")))
    if not len(values):
        return pa.array([], TEXT)
    start_of_tag = np.zeros(max(starts) + 1, dtype=np.int64)
    for tag, start in starts.items():
        start_of_tag[tag] = start
    return pa.concat_arrays(members).take(pa.array(start_of_tag[tags] + places))


def _one_of(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


is_text = _one_of(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
is_binary = _one_of(
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
)
is_list = _one_of(
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)

_RENDERERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (is_text, _render_texts),
    (pa.types.is_integer, _render_literals),
    (pa.types.is_boolean, _render_literals),
    (pa.types.is_floating, _render_floats),
    (pa.types.is_decimal, _render_literals),
    (pa.types.is_timestamp, render_timestamps),
    (pa.types.is_date, render_dates),
    (pa.types.is_time, render_times),
    (pa.types.is_duration, render_durations),
    (pa.types.is_interval, render_intervals),
    (is_binary, _render_binary),
    (pa.types.is_null, _render_nulls),
    (pa.types.is_dictionary, _render_dictionaries),
    (pa.types.is_run_end_encoded, _render_run_ends),
    (pa.types.is_struct, _render_structs),
    (pa.types.is_map, _render_maps),
    (is_list, _render_lists),
    (pa.types.is_union, _render_unions),
)
