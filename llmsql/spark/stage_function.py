"""What a Spark worker runs for a stage of a plan: argument tuples in, the same tuples with their values out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyspark import Accumulator

from llmsql.arguments import fields_table
from llmsql.buffering import buffered
from llmsql.functions import Call
from llmsql.model import Model
from llmsql.operator import evaluate
from llmsql.planner.plan import Stage
from llmsql.settings import Settings
from llmsql.spark.counters import Counters, count
from llmsql.spark.reports import Allowance, Report
from llmsql.spark.worker_models import worker_models
from llmsql.statistics import StageStatistics

COUNT, VALUE = "n", "value"


@dataclass(frozen=True)
class StageFunction:
    """The operator on the partitions of a stage; pickled on the driver, called on the workers.

    counters: what is counted is added to each of them. allowance: what all tasks of the statement may cost.
    """

    stage: Stage
    model: str | Model
    settings: Settings
    counters: tuple[Accumulator[Counters], ...]
    allowance: Allowance = field(default_factory=Allowance)

    def batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The argument columns of the batches and `value`; up to `settings.batch_rows` rows are asked at a time."""
        with closing(Report(self.allowance, self.stage.name, self.stage.call.function)) as report:
            filled = (batch for batch in batches if batch.num_rows)
            for held in buffered(filled, self.settings.batch_rows, len):
                table = pa.Table.from_batches(held)
                arguments = table.select(list(self.stage.columns))
                answered = arguments.append_column(VALUE, self._values(arguments, table.column(COUNT), report))
                yield from answered.combine_chunks().to_batches()

    def _values(self, arguments: pa.Table, counts: pa.ChunkedArray, report: Report) -> pa.Array:
        repeats = counts.to_numpy()
        first = np.arange(len(repeats))
        if not self.settings.deduplicate:  # each tuple as often as it occurs
            first = np.cumsum(repeats) - repeats
            arguments = arguments.take(pa.array(np.repeat(np.arange(len(repeats)), repeats)))
        columns = arguments.columns
        prompts = columns.pop(0) if self.stage.has_prompt_column else None
        call, settings = self.stage.call, self.settings
        model = self._model(call, report)
        statistics = StageStatistics(call=self.stage.call_sql, place=self.stage.place)
        try:
            fields = fields_table(columns, list(self.stage.fields))
            with report.watching(statistics):
                values = evaluate(
                    call, fields, model, settings, statistics, prompts=prompts, on_progress=report.advance
                )
            return values.take(pa.array(first))
        finally:
            for counters in self.counters:
                count(counters, call, int(repeats.sum()), statistics)

    def _model(self, call: Call, report: Report) -> Model:
        return worker_models(self.model, self.settings).get(call.model, report)


def map_function(function: StageFunction) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """`function` in the form that `mapInArrow` takes."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return function.batches(batches)

    return run
