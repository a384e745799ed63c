"""The benchmark of the reordering methods runs, and its bound is one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmsql.optimizer import deduplicate, encode, reorder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(sys.modules, "reorder", None)  # not the benchmark of another test
    monkeypatch.delitem(sys.modules, "reorder")


@pytest.mark.slow
def test_it_runs_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import reorder as benchmark

    rows = np.arange(120)
    given = pa.table({"id": rows, "<product>": [f"product {r // 10} with a name" for r in rows], "stars": rows % 3})
    pq.write_table(given, tmp_path / "beer.parquet")
    benchmark.main([str(tmp_path / "beer.parquet"), "--synthetic-rows", "60", "--output", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert (tmp_path / "out" / "reorder.md").read_text() == text.removesuffix("\n")
    rates = {(order, method): float(rate) for order, method, rate in re.findall(r"(\w+) \| (\w+) \| ([\d.]+) \|", text)}
    assert rates["shuffled", "none"] == rates["natural", "none"] < 20
    assert rates["shuffled", "tree"] == rates["natural", "auto"] > 50
    assert re.search(r"\| beer \|.* \| 66\.2 \| [\d.]+, [\d.]+, 17\.9 \| [\d.]+ \| [\d.]+ \| \d+ % \|", text)
    assert "below the better of `fixed` and `ggr` on 0 of 24 tables" in text
    chart = ElementTree.fromstring((tmp_path / "out" / "reorder.svg").read_text())
    titles = [title.text or "" for title in chart.iter("{http://www.w3.org/2000/svg}title")]
    assert [title for title in titles if title.startswith("beer, tree: ")]


@pytest.mark.slow
def test_batches_after_each_other_compute_less_than_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import batches as benchmark

    rows = np.arange(160)
    given = pa.table({"id": rows, "stars": rows % 3, "product": [f"product {r // 8} with a name" * 9 for r in rows]})
    pq.write_table(given, tmp_path / "reviews.parquet")
    benchmark.main([str(tmp_path / "reviews.parquet"), "--orders", "shuffled", "--output", str(tmp_path)])
    found = re.findall(r"\+([\d.]+), \+([\d.]+), \+([\d.]+) \|", capsys.readouterr().out)
    assert len(found) == 2
    for apart, after, more in found:
        assert min(float(after), float(more)) < float(apart)
    assert (tmp_path / "batches.md").read_text().count("| reviews | 160 | shuffled |") == 2


def test_tables_come_from_their_seeds() -> None:
    from synthetic_tables import list_tables, tables

    first, again = tables((1,), 50), tables((1,), 50)
    assert all(first[name].equals(again[name]) for name in first)
    assert not first["star 1"].equals(tables((2,), 50)["star 2"])
    for _, table, lists in list_tables((1, 2), 50):
        assert table.num_rows == 50
        assert all(pa.types.is_list(table.schema.field(name).type) for name in lists)


def test_no_order_has_more_hits_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    import spanning_bound

    generator = np.random.default_rng(0)
    slack = []
    for trial in range(60):
        monkeypatch.setattr(spanning_bound, "NEIGHBOURS", 1 + trial % 4)
        monkeypatch.setattr(spanning_bound, "DENSE", (0, 1)[trial % 2])
        monkeypatch.setattr(spanning_bound, "BLOCK_CELLS", 1 + trial)
        shape = generator.integers(1, 10), generator.integers(1, 5)
        codes = generator.integers(0, 3, shape)
        cells = encode(
            pa.table({f"c{i}": [f"{v}" * (1 + 4 * v) if v else None for v in c] for i, c in enumerate(codes.T)})
        )
        best = reorder(cells, method="ophr").stats.hit_units
        bound = spanning_bound.hit_bound(cells)
        assert best <= bound
        slack.append(bound - best)
    assert sum(gap == 0 for gap in slack) > 20  # and it is no empty promise


def test_the_bound_counts_copies_of_rows() -> None:
    from spanning_bound import hit_bound

    cells = encode(pa.table({"a": ["x", "x", "x", "y"], "b": [1, 1, 2, 3]}))
    assert deduplicate(cells).num_distinct == 3
    assert hit_bound(cells) == 2 * len('"a": "x",\n') + len('"b": 1,\n')
