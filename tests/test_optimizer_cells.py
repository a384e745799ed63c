"""Cell encoding: equal values have equal text, different values of a column never the same text."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import OptimizerError, encode

TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["", "null", "NULL", "1", "true", '"', "\\", "\\n", "\n", "\x00", "é", "\u2028", "😀"]),
)
SMALL_INTEGERS = st.integers(-3, 3)
KINDS = [
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.string_view(), TEXTS),
    (pa.dictionary(pa.int8(), pa.string()), TEXTS),
    (pa.bool_(), st.booleans()),
    (pa.int8(), SMALL_INTEGERS),
    (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    (pa.float64(), st.one_of(st.floats(), st.sampled_from([0.1, 1e16, 1e-7, 1 / 3]))),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.decimal128(12, 4), st.decimals(-99, 99, places=4)),
    (pa.date32(), st.dates()),
    (pa.time64("us"), st.times()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "Europe/Berlin"), st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2030, 1, 1))),
    (pa.duration("ms"), st.integers(-5000, 5000).map(lambda n: dt.timedelta(milliseconds=n))),
    (pa.month_day_nano_interval(), st.tuples(SMALL_INTEGERS, SMALL_INTEGERS, st.integers(-(10**10), 10**10))),
    (pa.binary(), st.binary(max_size=3)),
    (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=3)),
    (pa.list_(pa.list_(pa.int8())), st.lists(st.none() | st.lists(st.none() | SMALL_INTEGERS, max_size=2), max_size=2)),
    (pa.large_list_view(pa.int8()), st.lists(SMALL_INTEGERS, max_size=2)),
    (pa.list_(pa.int8(), 2), st.lists(SMALL_INTEGERS, min_size=2, max_size=2)),
    (
        pa.struct([("a", pa.int8()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.none() | SMALL_INTEGERS, "b": st.none() | TEXTS}),
    ),
    (
        pa.map_(pa.string(), pa.int8()),
        st.dictionaries(TEXTS, st.none() | SMALL_INTEGERS, max_size=2).map(lambda d: [*d.items()]),
    ),
    (pa.map_(pa.int8(), pa.string()), st.dictionaries(SMALL_INTEGERS, TEXTS, max_size=2).map(lambda d: [*d.items()])),
]
TAGS, ONE = pa.array([0, 1], pa.int8()), pa.array([1])
ZEROS = pa.array([0, 0], pa.int32())
UUID = pa.array([uuid.UUID(int=7).bytes], pa.binary(16))
COLUMNS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.lists(st.none() | kind[1], max_size=8).map(lambda values: pa.array(values, kind[0]))
)


def same_value(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    return left == right


@given(COLUMNS, st.integers(0, 3))
@settings(deadline=None, max_examples=500)
def test_two_cells_are_one_exactly_when_their_values_are_equal(column: pa.Array, start: int) -> None:
    column = column.slice(start)
    cells = encode(pa.table({"a": column}))
    codes, texts = cells.codes[:, 0], cells.texts[0].to_pylist()
    values = column.to_pylist()
    for left, code in zip(values, codes.tolist()):
        assert (code == -1) == (left is None)
        assert all((code == other) == same_value(left, right) for right, other in zip(values, codes.tolist()))
    assert len(set(texts)) == len(texts) == len(set(codes.tolist()) - {-1})
    assert cells.lengths[0].tolist() == [len(text) for text in texts]
    for text in texts:
        assert text.startswith('"a": ')
        assert text.endswith(",\n")
        assert "\n" not in text[:-1]
        json.loads("{" + text[:-2] + "}")  # NaN and Infinity are as Python's json spells them


@given(st.lists(TEXTS, max_size=8))
@settings(deadline=None)
def test_text_comes_back_from_its_json(values: list[str]) -> None:
    cells = encode(pa.table({"é": pa.array(values, pa.string())}))
    read = [json.loads("{" + text[:-2] + "}")["é"] for text in cells.texts[0].to_pylist()]
    assert [read[code] for code in cells.codes[:, 0]] == values


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["naïve \U0001f600", 'a"b\\c\n\x01']), ['"naïve \U0001f600"', '"a\\"b\\\\c\\n\\u0001"']),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([1, -2]), ["1", "-2"]),
        (pa.array([4.5, -0.0, 1e300, float("nan"), float("-inf")]), ["4.5", "0.0", "1e+300", "NaN", "-Infinity"]),
        (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3.0"]),
        (pa.array([Decimal("1.50")]), ["1.50"]),
        (pa.array([dt.date(2024, 2, 29)]), ['"2024-02-29"']),
        (pa.array([dt.time(1, 2, 3, 500_000)]), ['"01:02:03.5"']),
        (pa.array([dt.datetime(2024, 2, 29, 12)]), ['"2024-02-29T12:00:00"']),
        (pa.array([dt.datetime(1, 1, 1, 0, 0, 0, 10)]), ['"0001-01-01T00:00:00.00001"']),
        (pa.array([0], pa.timestamp("s", "Europe/Berlin")), ['"1970-01-01T01:00:00+01:00"']),
        (pa.array([10**9], pa.timestamp("s", "America/New_York")), ['"2001-09-08T21:46:40-04:00"']),
        (pa.array([0], pa.timestamp("s", "UTC")), ['"1970-01-01T00:00:00+00:00"']),
        (pa.array([86_400_001], pa.date64()), ['"1970-01-02T00:00:00.001"']),
        (pa.array([90_500, -1], pa.duration("ms")), ['"PT90.5S"', '"-PT0.001S"']),
        (pa.array([(14, 3, -1_500_000_000)], pa.month_day_nano_interval()), ['"P14M3DT-1.5S"']),
        (pa.array([b"\xff", b""]), ['"base64:/w=="', '"base64:"']),
        (pa.array([[1, None], []], pa.list_(pa.int8())), ["[1, null]", "[]"]),
        (pa.array([{"a": 1, "b": None}, {"a": None, "b": ["x"]}]), ['{"a": 1}', '{"b": ["x"]}']),
        (pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float64())), ['{"k": 1.0}']),
        (pa.array([[(7, None)]], pa.map_(pa.int8(), pa.string())), ['{"7": null}']),
        (
            pa.StructArray.from_arrays([pa.array([1, None]), pa.array([None, 1])], names=["a", "a"]),
            ['{"a": 1, "a": null}', '{"a": null, "a": 1}'],
        ),
        (pa.UnionArray.from_dense(TAGS, ZEROS, [ONE, ONE], ["x", "y"]), ['{"x": 1}', '{"y": 1}']),
        (pa.UnionArray.from_sparse(TAGS, [pa.array([1, 2])] * 2, ["x", "y"]), ['{"x": 1}', '{"y": 2}']),
        (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]), ['"a"', '"b"']),
        (pa.ExtensionArray.from_storage(pa.uuid(), UUID), [f'"{uuid.UUID(int=7)}"']),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_canonical_text(column: pa.Array, texts: list[str]) -> None:
    assert encode(pa.table({"x": column})).texts[0].to_pylist() == [f'"x": {text},\n' for text in texts]


def test_null_is_no_text_and_no_value() -> None:
    cells = encode(pa.table({"a": ["", None, "null"], "b": pa.nulls(3)}))
    assert cells.codes.tolist() == [[0, -1], [-1, -1], [1, -1]]
    assert cells.texts[0].to_pylist() == ['"a": "",\n', '"a": "null",\n']
    assert len(cells.texts[1]) == 0
    assert cells.ids.tolist() == [[1, 0], [0, 0], [2, 0]]
    assert cells.id_texts.to_pylist()[0] == ""


def test_zeros_and_nans_of_any_sign_are_one_cell() -> None:
    cells = encode(pa.table({"a": [0.0, -0.0, float("nan"), -float("nan"), None]}))
    assert cells.codes[:, 0].tolist() == [0, 0, 1, 1, -1]


def test_dictionaries_with_repeated_null_and_unused_values() -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([3, 1, None, 2, 3]), pa.array(["unused", "x", None, "x"]))
    cells = encode(pa.table({"a": values}))
    assert cells.codes[:, 0].tolist() == [0, 0, -1, -1, 0]
    assert cells.texts[0].to_pylist() == ['"a": "x",\n']


def test_chunks_and_dictionaries_that_differ_by_chunk() -> None:
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()]
    cells = encode(pa.table({"a": pa.chunked_array(chunks), "b": pa.chunked_array([["x"], ["x", None, "y"]])}))
    assert cells.codes.tolist() == [[0, 0], [1, 0], [1, -1], [2, 1]]


def test_a_long_cell() -> None:
    cells = encode(pa.table({"a": ["x" * 10_000_000, "y"]}))
    assert cells.lengths[0].tolist() == [10_000_000 + len('"a": "",\n'), len('"a": "y",\n')]


def test_lengths_can_be_replaced() -> None:
    cells = encode(pa.table({"a": ["x", "yy", "x"]})).with_lengths([[3, 4]])
    assert cells.unit == "tokens"
    assert cells.id_lengths[cells.ids].tolist() == [[3], [4], [3]]
    with pytest.raises(OptimizerError, match=r"with \[2\] entries, got shapes \[\(3,\)\]"):
        cells.with_lengths([[1, 2, 3]])
    with pytest.raises(OptimizerError, match="must not be negative"):
        cells.with_lengths([[1, -2]])
