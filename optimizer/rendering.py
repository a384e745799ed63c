"""Canonical JSON text of Arrow values, one kernel call per type instead of a Python loop per value.

Equal values of a column have equal text, and different values never share one: numbers and booleans are JSON literals
(-0.0 is 0.0; NaN, Infinity and -Infinity are spelled so), text keeps its unicode and escapes only what JSON demands,
dates and times are quoted ISO 8601, binary is quoted base64 behind a prefix, structs are objects without their NULL
members, lists are arrays in which NULL items are `null`.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import OptimizerError

TEXT = pa.large_string()
HARMLESS_BYTES = bytes(code for code in range(32, 256) if chr(code) not in '"\\')
SHORT_ESCAPES = {'"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def render_values(values: pa.Array) -> pa.Array:
    """The JSON text of every value, large_string; NULL stays NULL. Raises OptimizerError for unknown types."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _render_uuids(values) if isinstance(kind, pa.UuidType) else render_values(values.storage)
    for matches, renderer in _RENDERERS:
        if matches(kind):
            return renderer(values)
    raise OptimizerError(f"values of Arrow type {kind} have no JSON text; cast the column to text first")


def quote(texts: pa.Array) -> pa.Array:
    """JSON string literals of a large_string array; unicode stays as it is."""
    present = _escaped_characters(texts)
    if "\\" in present:
        texts = pc.replace_substring(texts, "\\", "\\\\")
    for character in present:
        if character != "\\":
            texts = pc.replace_substring(texts, character, SHORT_ESCAPES.get(character, f"\\u{ord(character):04x}"))
    return _join(_text('"'), texts, _text('"'))


def _escaped_characters(texts: pa.Array) -> list[str]:
    """The characters that JSON escapes, as far as the texts hold them (or their buffer does: more is harmless)."""
    data = texts.buffers()[2]
    found = b"" if data is None else data.to_pybytes().translate(None, delete=HARMLESS_BYTES)
    return [chr(code) for code in sorted(set(found))]


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, TEXT)


def _join(*parts: pa.Array | pa.Scalar) -> pa.Array:
    return pc.binary_join_element_wise(*parts, _text(""))


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
        texts = pc.if_else(pc.equal(texts, _text(arrow_text)), _text(json_text), texts)
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


def _render_dates(values: pa.Array) -> pa.Array:
    # date64 counts milliseconds, which may lie inside a day
    return (
        _render_timestamps(pc.cast(values, pa.timestamp("ms"))) if pa.types.is_date64(values.type) else _quoted(values)
    )


def _quoted(values: pa.Array) -> pa.Array:
    return _join(_text('"'), pc.cast(values, TEXT), _text('"'))


def _render_times(values: pa.Array) -> pa.Array:
    return _join(_text('"'), _without_empty_fraction(pc.cast(values, TEXT)), _text('"'))


def _render_timestamps(values: pa.Array) -> pa.Array:
    offsets: pa.Array | pa.Scalar = _text("")
    if values.type.tz is not None:
        instants = pc.cast(values, pa.int64())
        local, offsets = _local_times(values, instants)
    else:
        local = values
    texts = pc.replace_substring_regex(pc.cast(local, TEXT), r"^(-?\d+-\d\d-\d\d) ", r"\1T")
    return _join(_text('"'), _without_empty_fraction(texts), offsets, _text('"'))


def _local_times(values: pa.Array, instants: pa.Array) -> tuple[pa.Array, pa.Array | pa.Scalar]:
    """Wall-clock times and the `+hh:mm` behind them; in UTC where the machine does not know the zone."""
    naive = pa.timestamp(values.type.unit)
    try:
        local = pc.local_timestamp(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pc.cast(instants, naive), _text("+00:00")
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.type.unit]
    shift = pc.subtract(pc.cast(local, pa.int64()), instants).fill_null(0).to_numpy(zero_copy_only=False) // per_second
    distinct, codes = np.unique(shift, return_inverse=True)
    return local, pa.array([_zone_offset(int(seconds)) for seconds in distinct], TEXT).take(pa.array(codes))


def _zone_offset(seconds: int) -> str:
    minutes, rest = divmod(abs(seconds), 60)
    text = f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{rest:02d}" if rest else text  # zones before standard time had odd seconds


def _without_empty_fraction(texts: pa.Array) -> pa.Array:
    trimmed = pc.replace_substring_regex(texts, r"(\.\d*[1-9])0+$", r"\1")
    return pc.replace_substring_regex(trimmed, r"\.0+$", "")


def _render_durations(values: pa.Array) -> pa.Array:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.type.unit]
    counts = pc.cast(values, pa.int64()).to_pylist()
    return pa.array([None if n is None else f'"{_iso_duration(n, per_second)}"' for n in counts], TEXT)


def _iso_duration(count: int, per_second: int) -> str:
    whole, rest = divmod(abs(count), per_second)
    fraction = f".{rest:0{len(str(per_second)) - 1}d}".rstrip("0") if rest else ""
    return f"{'-' if count < 0 else ''}PT{whole}{fraction}S"


def _render_intervals(values: pa.Array) -> pa.Array:
    texts: list[str | None] = []
    for interval in values.to_pylist():
        if interval is None:
            texts.append(None)
            continue
        time = _iso_duration(interval.nanoseconds, 10**9)
        sign, seconds = ("-", time[3:]) if time.startswith("-") else ("", time[2:])
        texts.append(f'"P{interval.months}M{interval.days}DT{sign}{seconds}"')
    return pa.array(texts, TEXT)


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
        members.append(_join(_text(quote_name(name) + ": "), texts, _text(", ")).fill_null(""))
    # no JSON value ends with a comma or a blank, so only the last separator is trimmed
    inner = pc.ascii_rtrim(_join(*members), ", ") if members else pa.array([""] * len(values), TEXT)
    return pc.if_else(values.is_valid(), _join(_text("{"), inner, _text("}")), pa.scalar(None, TEXT))


def _render_lists(values: pa.Array) -> pa.Array:
    items = render_values(values.flatten()).fill_null("null")
    return _join(_text("["), _join_runs(items, pc.list_value_length(values)), _text("]"))


def _render_maps(values: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(pc.cast(values, pa.list_(pa.struct(_entry_fields(values.type)))))
    first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
    keys, items = values.keys[first:last], values.items[first:last]
    key_texts = render_values(keys)
    if len(key_texts) and not is_text(values.type.key_type):
        key_texts = quote(key_texts)
    pairs = _join(key_texts, _text(": "), render_values(items).fill_null("null"))
    return _join(_text("{"), _join_runs(pairs, lengths), _text("}"))


def _entry_fields(kind: pa.DataType) -> list[pa.Field]:
    return [pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)]


def _join_runs(texts: pa.Array, lengths: pa.Array) -> pa.Array:
    """Consecutive runs of texts joined with commas, one per length; a NULL length gives NULL."""
    counts = lengths.fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    runs = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), texts)
    return pc.if_else(lengths.is_valid(), pc.binary_join(runs, _text(", ")), pa.scalar(None, TEXT))


def _render_unions(values: pa.Array) -> pa.Array:
    """A union value is an object with the name of its member, so that equal values of two members stay apart."""
    tags = values.type_codes.to_numpy()
    places = values.offsets.to_numpy() if values.type.mode == "dense" else np.arange(len(values))
    members: list[pa.Array] = []
    starts: dict[int, int] = {}
    for position, tag in enumerate(values.type.type_codes):
        starts[tag] = sum(len(member) for member in members)
        texts = render_values(values.field(position))
        members.append(_join(_text("{" + quote_name(values.type.field(position).name) + ": "), texts, _text("}")))
    if not len(values):
        return pa.array([], TEXT)
    start_of_tag = np.zeros(max(starts) + 1, dtype=np.int64)
    for tag, start in starts.items():
        start_of_tag[tag] = start
    return pa.concat_arrays(members).take(pa.array(start_of_tag[tags] + places))


def quote_name(name: str) -> str:
    """The JSON string literal of one name."""
    text: str = quote(pa.array([name], TEXT))[0].as_py()
    return text


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
    (pa.types.is_timestamp, _render_timestamps),
    (pa.types.is_date, _render_dates),
    (pa.types.is_time, _render_times),
    (pa.types.is_duration, _render_durations),
    (pa.types.is_interval, _render_intervals),
    (is_binary, _render_binary),
    (pa.types.is_null, _render_nulls),
    (pa.types.is_dictionary, _render_dictionaries),
    (pa.types.is_run_end_encoded, _render_run_ends),
    (pa.types.is_struct, _render_structs),
    (pa.types.is_map, _render_maps),
    (is_list, _render_lists),
    (pa.types.is_union, _render_unions),
)
