"""The tuples of a stage whose answers the result cache has, taken out before the others are cut into partitions.

A cache is the file of one machine: a worker finds what was asked on its machine, or on a disk that machines share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import Accumulator

from llmsql.answers import arrow_type
from llmsql.arguments import fields_table
from llmsql.cache_keys import row_keys
from llmsql.caching_model import CachingModel
from llmsql.functions import RETURN, Call
from llmsql.model import Answer, Model
from llmsql.operator import evaluate
from llmsql.planner.plan import Stage
from llmsql.settings import Settings
from llmsql.spark.counters import Counters, count
from llmsql.spark.stage_function import COUNT, VALUE
from llmsql.spark.worker_models import worker_models
from llmsql.statistics import StageStatistics

KNOWN = "known"


def may_be_known(call: Call, model: str | Model, settings: Settings) -> bool:
    """Whether it is worth looking: answers are kept, and those of a group are not made of others."""
    kept = settings.cache is not False and (settings.cache is not None or isinstance(model, str))
    return kept and settings.cached_first and settings.deduplicate and not call.is_aggregate


@dataclass(frozen=True)
class KnownAnswers:
    """Looks argument tuples up on the workers; pickled on the driver."""

    stage: Stage
    model: str | Model
    settings: Settings
    counters: tuple[Accumulator[Counters], ...]

    def batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches with `value` and whether it is `known`: so it is for tuples that are all NULL, too."""
        call = self.stage.call
        asked = replace(call, on_error=RETURN)
        kind = arrow_type(call)
        model: Model | None = None
        for batch in batches:
            if model is None:
                model = worker_models(self.model, self.settings).get(call.model)
            if not isinstance(model, CachingModel) or model.cache.is_empty:
                found, known = pa.nulls(batch.num_rows, kind), pa.array([False] * batch.num_rows)
            else:
                found, known = self._look_up(batch, asked, model)
            table = pa.table(batch.columns, names=batch.schema.names)
            yield from table.append_column(VALUE, found).append_column(KNOWN, known).combine_chunks().to_batches()

    def _look_up(self, batch: pa.RecordBatch, asked: Call, model: CachingModel) -> tuple[pa.Array, pa.Array]:
        stage = self.stage
        columns = [pa.chunked_array([batch.column(name)]) for name in stage.columns]
        prompts = columns.pop(0) if stage.has_prompt_column else None
        statistics = StageStatistics(call=stage.call_sql, place=stage.place)
        fields = fields_table(columns, list(stage.fields))
        outcomes = evaluate(asked, fields, _Cache(model), self.settings, statistics, prompts=prompts)
        answers, errors = outcomes.flatten()
        known = pc.is_null(errors)
        part = StageStatistics(call=stage.call_sql, place=stage.place, cached=statistics.cached)
        rows = pc.sum(pc.if_else(known, batch.column(COUNT), 0)).as_py() or 0
        for counters in self.counters:
            count(counters, stage.call, rows, part)
        return (outcomes if stage.call.returns_error else answers), known


class _Cache:
    """Answers what the cache knows, and nothing else."""

    def __init__(self, model: CachingModel):
        self._model = model

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        keys = row_keys(call, fields, settings, self._model.fingerprint)
        found = self._model.cache.find(keys)
        for row, key in enumerate(keys):
            if key in found:
                yield Answer(row, found[key].text, truncated=found[key].truncated, cached=True)
            else:
                yield Answer(row, None, "not in the result cache")

    def close(self) -> None:
        """Nothing to release."""


def look_up_function(known: KnownAnswers) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """`known` in the form that `mapInArrow` takes."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return known.batches(batches)

    return run
