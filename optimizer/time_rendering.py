"""Canonical JSON text of dates, times and durations."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .literals import TEXT, join, text

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def render_dates(values: pa.Array) -> pa.Array:
    """Quoted dates; date64 as timestamps, since its milliseconds may lie inside a day."""
    if pa.types.is_date64(values.type):
        return render_timestamps(pc.cast(values, pa.timestamp("ms")))
    return join(text('"'), pc.cast(values, TEXT), text('"'))


def render_times(values: pa.Array) -> pa.Array:
    """Quoted times of day without trailing zeros."""
    return join(text('"'), _without_empty_fraction(pc.cast(values, TEXT)), text('"'))


def render_timestamps(values: pa.Array) -> pa.Array:
    """Quoted date and time of day; with a zone the local time there and its offset from UTC."""
    offsets: pa.Array | pa.Scalar = text("")
    if values.type.tz is not None:
        instants = pc.cast(values, pa.int64())
        local, offsets = _local_times(values, instants)
    else:
        local = values
    texts = pc.replace_substring_regex(pc.cast(local, TEXT), r"^(-?\d+-\d\d-\d\d) ", r"\1T")
    return join(text('"'), _without_empty_fraction(texts), offsets, text('"'))


def _local_times(values: pa.Array, instants: pa.Array) -> tuple[pa.Array, pa.Array | pa.Scalar]:
    """Wall-clock times and the `+hh:mm` behind them; in UTC where the machine does not know the zone."""
    naive = pa.timestamp(values.type.unit)
    try:
        local = pc.local_timestamp(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pc.cast(instants, naive), text("+00:00")
    per_second = PER_SECOND[values.type.unit]
    shift = pc.subtract(pc.cast(local, pa.int64()), instants).fill_null(0).to_numpy(zero_copy_only=False) // per_second
    distinct, codes = np.unique(shift, return_inverse=True)
    return local, pa.array([_zone_offset(int(seconds)) for seconds in distinct], TEXT).take(pa.array(codes))


def _zone_offset(seconds: int) -> str:
    minutes, rest = divmod(abs(seconds), 60)
    offset = f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{offset}:{rest:02d}" if rest else offset  # zones before standard time had odd seconds


def _without_empty_fraction(texts: pa.Array) -> pa.Array:
    trimmed = pc.replace_substring_regex(texts, r"(\.\d*[1-9])0+$", r"\1")
    return pc.replace_substring_regex(trimmed, r"\.0+$", "")


def render_durations(values: pa.Array) -> pa.Array:
    """Quoted ISO 8601 durations in seconds."""
    per_second = PER_SECOND[values.type.unit]
    counts = pc.cast(values, pa.int64()).to_pylist()
    return pa.array([None if n is None else f'"{_iso_duration(n, per_second)}"' for n in counts], TEXT)


def _iso_duration(count: int, per_second: int) -> str:
    whole, rest = divmod(abs(count), per_second)
    fraction = f".{rest:0{len(str(per_second)) - 1}d}".rstrip("0") if rest else ""
    return f"{'-' if count < 0 else ''}PT{whole}{fraction}S"


def render_intervals(values: pa.Array) -> pa.Array:
    """Quoted ISO 8601 durations in months, days and seconds, which do not convert into each other."""
    texts: list[str | None] = []
    for interval in values.to_pylist():
        if interval is None:
            texts.append(None)
            continue
        time = _iso_duration(interval.nanoseconds, 10**9)
        sign, seconds = ("-", time[3:]) if time.startswith("-") else ("", time[2:])
        texts.append(f'"P{interval.months}M{interval.days}DT{sign}{seconds}"')
    return pa.array(texts, TEXT)
