"""The icicle chart is well-formed and shows what is shared."""

from __future__ import annotations

from xml.etree import ElementTree

import pyarrow as pa
import pytest

from llmsql.optimizer import OptimizerError, encode, icicle, reorder

SVG = "{http://www.w3.org/2000/svg}"


def draw(table: pa.Table, **options: int) -> ElementTree.Element:
    cells = encode(table)
    return ElementTree.fromstring(icicle(cells, reorder(cells, method="tree"), **options))


def test_boxes_are_the_shared_cells() -> None:
    table = pa.table({"brand": ["b"] * 6 + ["c"] * 4, "name": ["x"] * 3 + ["y"] * 3 + list("pqrs"), "id": range(10)})
    chart = draw(table, width=1000)
    boxes = {}
    for group in chart.iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        assert box is not None
        boxes[group.findtext(f"{SVG}title")] = (float(box.get("width", 0)), float(box.get("y", 0)))
    assert boxes == {
        '6 rows: "brand": "b"': (600.0, 22.0),
        '4 rows: "brand": "c"': (400.0, 22.0),
        '3 rows: "name": "x"': (300.0, 44.0),
        '3 rows: "name": "y"': (300.0, 44.0),
    }


@pytest.mark.parametrize(
    "table",
    [
        pa.table({}),
        pa.table({"a": pa.array([], pa.string())}),
        pa.table({"a": ["x"]}),
        pa.table({"a": ["<&>\"'\x7f\u2028\ufffe" + "x" * 1000] * 5, "b": range(5)}),
        pa.table({"a": pa.nulls(3)}),
    ],
    ids=["nothing", "no rows", "one row", "markup", "nulls"],
)
def test_any_table_gives_well_formed_xml(table: pa.Table) -> None:
    assert draw(table).tag == f"{SVG}svg"


def test_many_rows_give_few_boxes() -> None:
    table = pa.table({"a": [i // 2 for i in range(20_000)], "b": [i % 3 for i in range(20_000)]})
    assert len(draw(table).findall(f"{SVG}g")) < 100


def test_an_ordering_of_another_table_is_refused() -> None:
    with pytest.raises(OptimizerError, match="the ordering is for"):
        icicle(encode(pa.table({"a": [1]})), reorder(pa.table({"a": [1, 2]})))
