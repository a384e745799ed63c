"""What a Spark worker runs: an iterator Arrow UDF that buffers its partition, then asks once for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeAlias

import pyarrow as pa
from pyspark import Accumulator

from llmsql.arguments import answer_arguments, answer_in_place, struct_fields
from llmsql.buffering import buffered
from llmsql.functions import FUNCTIONS, Call
from llmsql.model import Model
from llmsql.operator import evaluate
from llmsql.settings import Settings
from llmsql.spark.counters import IN_PLACE, Counters, count
from llmsql.spark.reports import Allowance, Report
from llmsql.spark.worker_models import worker_models
from llmsql.statistics import StageStatistics

#: A batch as Spark hands it over: one array per argument, bare when there is only one argument.
Batch: TypeAlias = tuple[pa.Array, ...] | pa.Array


@dataclass(frozen=True)
class PartitionFunction:
    """One function on the partitions of a query; pickled on the driver, called on the workers.

    call: what to ask, with fields in one struct, as the Column functions know it on the driver. None when Spark SQL
    calls the function: then prompt and labels come as columns before the fields. `in_place`: the planner wrote the
    call, whose columns are the call as JSON, the prompt where it varies, and the fields as a struct. `allowance`: what
    a query of Spark's may cost.
    """

    name: str
    call: Call | None
    model: str | Model
    settings: Settings
    counters: Accumulator[Counters] | None  # none over Spark Connect
    in_place: bool = False
    allowance: Allowance = field(default_factory=Allowance)

    def values(self, batches: Iterator[Batch]) -> Iterator[pa.Array]:
        """The values of the rows in `batches`, in arrays of the same lengths.

        Up to `settings.batch_rows` rows (and the rest of a batch) are held at a time; equal rows among them are asked
        once, and all of them are ordered together.
        """
        with closing(Report(self.allowance, IN_PLACE, self.name)) as report:
            columns = (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
            for held in buffered(columns, self.settings.batch_rows, _num_rows):
                joined = [pa.chunked_array(arrays) for arrays in zip(*held)]
                yield from _cut(self._answer(joined, report), map(_num_rows, held))

    def _answer(self, columns: list[pa.ChunkedArray], report: Report) -> pa.Array:
        def ask(call: Call, fields: pa.Table, prompts: pa.ChunkedArray | None = None) -> pa.Array:
            statistics = StageStatistics(call=f"{call.function}({call.prompt or '…'})", place=IN_PLACE, more=True)
            model = worker_models(self.model, self.settings).get(call.model, report)
            try:
                with report.watching(statistics):
                    return evaluate(call, fields, model, self.settings, statistics, prompts=prompts)
            finally:
                if self.counters is not None:
                    count(self.counters, call, fields.num_rows, statistics)

        if self.in_place:
            return answer_in_place(columns, ask)
        if self.call is None:
            return answer_arguments(FUNCTIONS[self.name], columns, ask)
        return ask(self.call, struct_fields(columns[0]))


def arrow_function(function: PartitionFunction) -> Callable[[Iterator[tuple[pa.Array, ...]]], Iterator[pa.Array]]:
    """`function` in the form whose type hints tell Spark that it is an iterator Arrow UDF of any arity."""

    def run(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        return function.values(batches)

    run.__name__ = function.name  # plans and default column names show it
    return run


def _num_rows(columns: tuple[pa.Array, ...]) -> int:
    return len(columns[0]) if columns else 0


def _cut(values: pa.Array, lengths: Iterable[int]) -> Iterator[pa.Array]:
    start = 0
    for length in lengths:
        yield values.slice(start, length)
        start += length
