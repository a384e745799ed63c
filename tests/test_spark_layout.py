"""Where Spark's rows go: in parts of equal predicted cost, in the order in which one machine would show them."""

from __future__ import annotations

import datetime
import decimal
import os
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql import LlmsqlError
from llmsql.optimizer import encode, reorder
from llmsql.settings import Settings
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from pyspark.sql import functions as F
from spark_session import frame_of, local_session

import llmsql.spark
from llmsql.functions import make_call
from llmsql.planner.plan import Stage
from llmsql.spark import llm_classify, with_llm
from llmsql.spark.layout import column_order, lay_out, sizes
from llmsql.spark.part_planner import AREA, ID, PART, PLACE, PartPlanner
from llmsql.spark.requirements import check_java

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def digests(columns: list[list[str | None]], ids: list[int] | None = None) -> pa.RecordBatch:
    rows = len(columns[0])
    arrays = [pa.array(range(rows) if ids is None else ids, pa.int64())]
    for column in columns:
        arrays.append(pa.array(column, pa.string()))
        arrays.append(pa.array([None if text is None else len(text) for text in column], pa.int32()))
    return pa.RecordBatch.from_arrays(arrays, [f"c{number}" for number in range(len(arrays))])


def planned(
    columns: list[list[str | None]], parts: int, *, prompted: bool = False, method: str = "auto", ids=None, rows=10**9
) -> dict[str, np.ndarray]:
    planner = PartPlanner((10,) * len(columns), prompted, method, 3, 10**9, parts, rows)
    batch = digests(columns, ids)
    half = batch.num_rows // 2
    found = pa.Table.from_batches(list(planner.batches(iter([batch.slice(half), batch.slice(0, half)]))))
    return {name: found[name].to_numpy() for name in (ID, AREA, PART, PLACE)}


def computed(columns: list[list[str | None]], groups: list[np.ndarray]) -> list[int]:
    """Characters that each group of rows computes, ordered by itself."""
    table = pa.table({f"column {number}": column for number, column in enumerate(columns)})
    return [reorder(encode(table.take(pa.array(rows)))).stats.computed_units for rows in groups]


def groups_of(found: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [found[ID][found[PART] == part] for part in range(int(found[PART].max()) + 1)]


def reviews(rows: int, seed: int = 0) -> list[list[str | None]]:
    """Products with long descriptions, users with short ones, and a text of each row's own; shuffled."""
    generator = np.random.default_rng(seed)
    product, user = generator.integers(0, rows // 12, rows), generator.zipf(1.4, rows) % (rows // 5)
    return [
        [f"text {n} " + "word " * int(generator.integers(3, 12)) for n in range(rows)],
        [f"product {p} " + f"with the description {p} " * 8 for p in product],
        [f"user {u}, who lives in city {u % 40}" for u in user],
        [None if p % 3 == 0 else f"brand {p % 25}" for p in product],
    ]


class TestPartPlanner:
    @given(
        st.lists(st.lists(st.sampled_from(["", "a", "b", "long " * 9, None]), min_size=3, max_size=3), min_size=1),
        st.integers(1, 9),
    )
    @settings(max_examples=80, deadline=None)
    def test_every_row_has_one_place_in_parts_that_follow_each_other(self, rows, parts):
        found = planned([list(column) for column in zip(*rows)], parts)
        assert sorted(found[ID]) == list(range(len(rows)))
        assert found[PLACE].tolist() == list(range(len(rows)))
        assert np.all(np.diff(found[PART]) >= 0)
        assert found[PART].max() < min(parts, len(rows))

    @pytest.mark.parametrize("parts", [2, 4, 16])
    def test_parts_compute_hardly_more_than_one_machine(self, parts):
        columns = reviews(2400)
        (one,) = computed(columns, [np.arange(2400)])
        assert sum(computed(columns, groups_of(planned(columns, parts)))) < 1.03 * one
        by_chance = sum(computed(columns, np.array_split(np.arange(2400), parts)))
        assert by_chance > 1.08 * one

    def test_the_same_plan_whatever_order_the_rows_arrive_in(self):
        columns = reviews(600)
        order = np.random.default_rng(5).permutation(600)
        found = planned(columns, 4)
        again = planned([[column[row] for row in order] for column in columns], 4, ids=order.tolist())
        assert all(np.array_equal(found[name], again[name]) for name in found)

    @pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
    def test_a_value_that_dominates_is_cut_by_cost(self, share):
        generator = np.random.default_rng(1)
        common = [("common " * 30 if generator.random() < share else f"rare {n % 5}") for n in range(2000)]
        own = [f"{n} " + "x" * int(generator.pareto(1.5) * 20) for n in range(2000)]
        costs = computed([common, own], groups_of(planned([common, own], 8)))
        assert len(costs) == 8
        assert max(costs) < 2 * sum(costs) / 8

    def test_a_row_that_outweighs_all_others_is_alone_with_few(self):
        own = ["y" * 1_000_000 if n == 70 else f"text {n}" for n in range(400)]
        groups = groups_of(planned([own], 4))
        assert len(groups) <= 4
        assert sum(map(len, groups)) == 400

    @given(st.lists(st.sampled_from(["", "a", "long " * 9, None]), min_size=1), st.integers(1, 5), st.integers(1, 9))
    @settings(max_examples=40, deadline=None)
    def test_parts_of_too_many_rows_are_cut_and_nothing_else_changes(self, texts, parts, rows):
        own = [f"{number}" for number in range(len(texts))]
        whole, cut = planned([texts, own], parts), planned([texts, own], parts, rows=rows)
        assert cut[ID].tolist() == whole[ID].tolist()
        sizes = [len(group) for group in groups_of(cut)]
        assert 0 < min(sizes) <= max(sizes) <= rows
        assert len(sizes) == sum(-(-len(group) // rows) for group in groups_of(whole))

    def test_a_prompt_comes_before_all_fields(self):
        prompts = [f"question {n % 4}?" for n in range(400)]
        fields = [f"a long text that {n // 4} others have " * 20 for n in range(400)]
        found = planned([prompts, fields], 4, prompted=True)
        assert [len({prompts[row] for row in rows}) for rows in groups_of(found)] == [1, 1, 1, 1]

    def test_nothing_and_nothing_but_null(self):
        planner = PartPlanner((10,), False, "auto", 0, 100, 4, 10)
        assert list(planner.batches(iter([digests([[]])]))) == []
        assert list(planner.batches(iter([]))) == []
        assert len(planned([[None] * 9, [None] * 9], 3)[ID]) == 9

    def test_rows_of_equal_ids_get_one_place(self):
        assert planned([["a", "b", "c", "d"]], 2, ids=[7, 7, 9, 9])[ID].tolist() in ([7, 9], [9, 7])


def test_order_of_columns():
    table = pa.table({"own": [f"text {n}" for n in range(50)], "shared": ["a long text that all have"] * 50})
    assert column_order(table) == ("shared", "own")


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    os.environ.pop("PYSPARK_PYTHON", None)
    session = local_session(tmp_path_factory.mktemp("warehouse"))
    llmsql.spark.register(session, model=FakeModel(label))  # workers now run this interpreter
    yield session
    session.stop()


STAGE = Stage(
    *("s", make_call("llm_filter", "Is it?"), "llm_filter", ("a", "b"), ("a0", "a1"), ("k0", "k1"), "v", "", "")
)


@pytest.mark.spark
class TestLayout:
    def frame(self, spark, number):
        # One value of a0 has nine tuples of ten.
        few = F.when(F.col("id") % 10 > 0, F.lit("common")).otherwise(F.concat(F.lit("rare "), F.col("id") % 7))
        own = F.concat(F.lit("own "), F.col("id"), F.repeat(F.lit("x"), (F.col("id") % 50).cast("int")))
        return spark.range(number).select(own.alias("a1"), few.alias("a0"), F.lit(2).alias("n"))

    @pytest.mark.parametrize("area_cells", [10**9, pytest.param(2000, marks=pytest.mark.spark_cluster)])
    def test_all_rows_once_and_costs_even(self, spark, area_cells):
        frame = self.frame(spark, 2000).persist()
        found = sizes(frame, STAGE)
        assert (found.distinct, found.rows) == (2000, 4000)
        layout = lay_out(frame, STAGE, found, Settings(), 4, area_cells=area_cells, partition_tokens=3000)
        rows = layout.apply(frame).select(F.spark_partition_id(), "a0", "a1").collect()
        layout.unpersist()
        frame.unpersist()
        assert Counter(rows_of(rows)) == Counter(rows_of(frame.select(F.lit(0), "a0", "a1").collect()))
        costs = Counter()
        for part, _, own in rows:
            costs[part] += len(own)
        assert len(costs) == layout.partitions > 4
        assert max(costs.values()) < 2 * sum(costs.values()) / len(costs)

    def test_no_partition_has_more_rows_than_a_task_holds_at_a_time(self, spark):
        frame = self.frame(spark, 200)
        layout = lay_out(frame, STAGE, sizes(frame, STAGE), Settings(batch_rows=30), 2)
        parts = Counter(row[0] for row in layout.apply(frame).select(F.spark_partition_id()).collect())
        layout.unpersist()
        assert parts.total() == 200
        assert max(parts.values()) <= 30

    def test_off_and_few_rows_need_no_plan(self, spark):
        frame = self.frame(spark, 400)
        found = sizes(frame, STAGE)
        assert lay_out(frame, STAGE, found, Settings(reorder=False), 4).places is None
        few = self.frame(spark, 12)
        assert lay_out(few, STAGE, sizes(few, STAGE), Settings(), 4).partitions == 1

    @pytest.mark.spark_cluster
    def test_values_of_every_type(self, spark):
        day = datetime.date(2026, 1, 31)
        table = pa.table(
            {
                "text": ["plain", "é" * 70, "", None] * 20,
                "number": [1, None, -3, 4] * 20,
                "real": [0.5, float("nan"), float("inf"), None] * 20,
                "day": [day, None, day, day] * 20,
                "exact": [decimal.Decimal("1.50"), None, decimal.Decimal("2.25"), None] * 20,
                "raw": [b"\xff\x00", b"", None, b"abc"] * 20,
                "items": [["a", None], [], None, ["b"]] * 20,
                "struct": [{"x": 1, "y": "z"}, None, {"x": None, "y": None}, {"x": 2, "y": "w"}] * 20,
                "own": list(range(80)),
            }
        )
        columns = tuple(f"a{number}" for number in range(table.num_columns))
        frame = frame_of(spark, table.rename_columns(columns)).withColumn("n", F.lit(1))
        number = F.col(columns[-1])
        frame = frame.withColumn("map", F.when(number % 3 > 0, F.create_map(F.lit("k"), number % 3))).persist()
        fields, columns = ("map", *table.column_names), ("map", *columns)
        stage = Stage("s", STAGE.call, "llm_filter", fields, columns, columns, "v", "", "")
        for area_cells in (10**9, 400):
            layout = lay_out(frame, stage, sizes(frame, stage), Settings(), 2, area_cells=area_cells)
            own = [row[0] for row in layout.apply(frame).select(columns[-1]).collect()]
            layout.unpersist()
            assert sorted(own) == list(range(80))
        frame.unpersist()

    def test_on_equals_off_in_answers(self, spark):
        columns = reviews(300)
        table = pa.table({"own": columns[0], "product": columns[1], "user": columns[2], "brand": columns[3]})
        found = []
        for reorder_on in (True, False):
            llmsql.spark.register(spark, model=FakeModel(label), reorder=reorder_on)
            call = llm_classify("Which?", ["a", "b", "c"], "product", "user", "brand")
            answered = with_llm(frame_of(spark, table), "label", call)
            found.append(sorted(rows_of(answered.select(F.lit(0), "own", "label").collect())))
        assert found[0] == found[1]
        assert len(found[0]) == 300


def label(prompt, fields, options):
    """A pure function of the values, whatever their order."""
    code = zlib.crc32(repr(sorted(fields.items())).encode())
    return options["choices"][code % 3]


def rows_of(rows):
    return [tuple(row)[1:] for row in rows]


@pytest.mark.spark_cluster
@pytest.mark.spark
def test_the_benchmark_counts_what_tasks_showed(spark, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "spark", raising=False)
    import spark as benchmark

    cloudpickle.register_pickle_by_value(benchmark)
    try:
        columns = reviews(1200)
        table = pa.table({"own": columns[0], "product": columns[1], "user": columns[2], "brand": columns[3]})
        runs = benchmark.Runs(spark, table, tmp_path, str(llmsql.demo.MODEL_FOLDER / "tokenizer.json"))
        one, plan = runs.one_machine(), runs.in_spark("planned", True)
        udf, none = runs.in_spark("udf", False), runs.in_spark("none", False, reorder=False)
    finally:
        cloudpickle.unregister_pickle_by_value(benchmark)
    assert one.rows == plan.rows == udf.rows == none.rows == 1200
    assert one.by_task <= plan.by_node <= plan.by_task < 1.05 * one.by_task
    assert 1.1 * plan.by_task < udf.by_task < none.by_task
    assert plan.largest_share < 2
    slices = [benchmark.least(table, [rows], runs.tokenizer) for rows in runs.slices]
    assert sum(slices) < udf.by_task
