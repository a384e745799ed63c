"""The icicle chart is well-formed and shows what is shared."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.optimizer import METHODS, OptimizerError, encode, icicle, reorder

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
        '6 rows save 70 characters: "brand": "b"': (600.0, 22.0),
        '4 rows save 42 characters: "brand": "c"': (400.0, 22.0),
        '3 rows save 26 characters: "name": "x"': (300.0, 44.0),
        '3 rows save 26 characters: "name": "y"': (300.0, 44.0),
    }


@pytest.mark.parametrize(
    "table",
    [
        pa.table({}),
        pa.table({"a": pa.array([], pa.string())}),
        pa.table({"a": ["x"]}),
        pa.table({"a": ["<&>\"'\x7f\u2028\ufffe" + "x" * 1000] * 5, "b": range(5)}),
        pa.table({"a": pa.nulls(3)}),
        pa.table({'<b>&"name\n': ["same"] * 4, "": [1, 1, 2, 2]}),
    ],
    ids=["nothing", "no rows", "one row", "markup", "nulls", "names"],
)
def test_any_table_gives_well_formed_xml(table: pa.Table) -> None:
    assert draw(table).tag == f"{SVG}svg"


VALUES = st.sampled_from([None, "", "a", "b", "a longer value", "<&>\n"])
TABLES = st.lists(st.tuples(*[VALUES] * 4), min_size=1, max_size=12).map(
    lambda rows: pa.table({f"<{i}>": pa.array([row[i] for row in rows], pa.string()) for i in range(4)})
)


@given(TABLES, st.sampled_from(METHODS), st.sampled_from([2, 20, 4_000]), st.sampled_from([3, 960]))
@settings(deadline=None)
def test_boxes_save_what_is_shared(table: pa.Table, method: str, most: int, width: int) -> None:
    cells = encode(table)
    ordering = reorder(cells, method=method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[icicle.__module__], "MAX_BOXES", most)
        chart = ElementTree.fromstring(icicle(cells, ordering, width=width))
    titles = [group.findtext(f"{SVG}title") or "" for group in chart.iter(f"{SVG}g")]
    saved = [int(match[1].replace(",", "")) for title in titles if (match := re.search(r"save ([\d,]+) char", title))]
    assert len(saved) == len(titles) <= most
    lines = [line.text or "" for line in chart.findall(f"{SVG}text")[1:]]
    rest = [int(match[1].replace(",", "")) for line in lines if (match := re.search(r"which save ([\d,]+),", line))]
    assert sum(saved) + sum(rest) == ordering.stats.hit_units


def test_wide_tables_give_few_boxes() -> None:
    table = pa.table({f"c{i}": [(i + row // 2) % 1_000 for row in range(900)] for i in range(200)})
    chart = draw(table)
    assert len(chart.findall(f"{SVG}g")) == 4_000
    assert "smaller boxes, which save" in (chart.findall(f"{SVG}text")[-1].text or "")


def test_many_rows_give_few_boxes() -> None:
    table = pa.table({"a": [i // 2 for i in range(20_000)], "b": [i % 3 for i in range(20_000)]})
    assert len(draw(table).findall(f"{SVG}g")) < 100


def test_an_ordering_of_another_table_is_refused() -> None:
    with pytest.raises(OptimizerError, match="the ordering is for"):
        icicle(encode(pa.table({"a": [1]})), reorder(pa.table({"a": [1, 2]})))
