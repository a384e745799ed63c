"""The embedded engine as a `Model`: put the prompts together, run them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from llmsql.batch_prompts import FreePrompts, is_free, prepare_prompts
from llmsql.errors import ModelError
from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.list_prompts import ListFrame, item_lines
from llmsql.model import Answer, Measure
from llmsql.optimizer import Cells, Ordering, encode, reorder
from llmsql.prompt_memories import PromptMemories
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

if TYPE_CHECKING:
    from llmsql.gpu_backend import Completion, Engine, Grammar, PromptTokenizer, Request
    from llmsql.gpu_backend.context import Context

LOG = logging.getLogger(__name__)


class EmbeddedModel:
    """A language model in this process. The weights are loaded at the first question; `close` frees them."""

    def __init__(self, name: str, engine_options: dict[str, Any], key: tuple[object, ...]):
        self.name = name
        self.key = key
        self._options = engine_options
        self._engine: Engine | None = None
        self._tokenizer: PromptTokenizer | None = None  # only where the weights were not needed
        self._context: Context | None = None
        self._memories: PromptMemories | None = None  # of the engine's prefix cache
        self._lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine, loaded on first use.

        Raises:
            ModelError: the model cannot be loaded.
        """
        from llmsql.gpu_backend import Engine, EngineError

        with self._lock:
            if self._engine is None:
                started = time.perf_counter()
                try:
                    self._engine = Engine(self.name, **self._options)
                except EngineError as problem:
                    raise ModelError(str(problem)) from problem
                self._memories = PromptMemories(self._engine.memory.num_blocks * self._engine.block_size)
                seconds = time.perf_counter() - started
                LOG.info(
                    "engine: %s loaded in %.1f s on %s, %s",
                    self.name,
                    seconds,
                    self._engine.device,
                    self._engine.memory,
                )
            return self._engine

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """Order the rows and their fields for prefix reuse, after those of earlier batches, and run them."""
        engine = self.engine
        with self._reordering(call, fields, settings, statistics) as reorder_cells:
            yield from self._answer(engine, call, fields, settings, statistics, reorder_cells)

    def _answer(
        self,
        engine: Engine,
        call: Call,
        fields: pa.Table,
        settings: Settings,
        statistics: StageStatistics,
        reorder_cells: Callable[[Cells], Ordering],
    ) -> Iterator[Answer]:
        from llmsql.gpu_backend import EngineError

        try:
            started = time.perf_counter()
            prompts = prepare_prompts(call, fields, engine.tokenizer, settings, statistics.tick, reorder_cells)
            statistics.reorder_seconds += time.perf_counter() - started
            if statistics.predicted_hit_rate is None and isinstance(prompts, FreePrompts):
                statistics.predicted_hit_rate = prompts.estimate().hit_rate
            meter = _Meter(statistics)
            requests = _requests(call, _counted(prompts, statistics), settings)

            def on_step() -> None:
                meter.read()
                statistics.tick()

            running = engine.generate(requests, stats=meter.stats, on_step=on_step)
            completions = cast("Generator[Completion, None, None]", running)
            try:
                for completion in completions:
                    assert isinstance(completion.id, int)
                    meter.read()
                    yield Answer(
                        row=completion.id,
                        text=None if completion.error else completion.text,
                        error=completion.error,
                        truncated=completion.finish_reason == "length",
                    )
            finally:
                completions.close()
                meter.read()
        except EngineError as problem:
            raise ModelError(str(problem)) from problem

    @contextmanager
    def _reordering(
        self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics
    ) -> Iterator[Callable[[Cells], Ordering]]:
        """What orders a batch while it runs; it goes on with earlier prompts, whose KV the engine keeps."""
        memories = self._memories
        cached = self._options.get("prefix_sharing", True) and self._options.get("prefix_cache", True)
        if memories is None or not (cached and settings.follow_earlier and is_free(call, settings)):
            yield reorder
            return
        with memories.reordering(call, fields.column_names, more=statistics.more) as reorder_cells:
            yield reorder_cells

    def estimate(self, call: Call, fields: pa.Table, settings: Settings) -> Estimate:
        """The tokens that `answer` would run, from the tokenizer alone: the weights are not loaded.

        Raises:
            ModelError: the model has no tokenizer that can be read.
        """
        from llmsql.gpu_backend import EngineError

        try:
            return prepare_prompts(call, fields, self._tokenizer_alone(), settings).estimate()
        except EngineError as problem:
            raise ModelError(str(problem)) from problem

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """In tokens: what the context holds beside the frame of the prompt and the longest answer.

        Raises:
            ModelError: the model has no tokenizer or configuration that can be read.
        """
        from llmsql.gpu_backend import EngineError
        from llmsql.gpu_backend.context import load_context

        try:
            tokenizer = self._tokenizer_alone()
            cells = encode(pa.table({"": items}))
            tokens = tokenizer.encode_cells(item_lines(cells))
            sizes = [len(tokens[code]) for code in cells.codes[:, 0]]
            if self._context is None:
                self._context = load_context(self.name, trust_remote_code=bool(self._options.get("trust_remote_code")))
            if self._context.length is None:
                return Measure(None, sizes)
            frame = ListFrame.of(call, name, tokenizer)
        except EngineError as problem:
            raise ModelError(str(problem)) from problem
        around = len(frame.head) + len(frame.tail) + call.output_tokens(settings.max_output_tokens)
        return Measure(self._context.length - around, sizes)

    def _tokenizer_alone(self) -> PromptTokenizer:
        from llmsql.gpu_backend.tokenizer import load_tokenizer

        with self._lock:
            if self._engine is not None:
                return self._engine.tokenizer
            if self._tokenizer is None:
                trusted = bool(self._options.get("trust_remote_code"))
                self._tokenizer = load_tokenizer(self.name, trust_remote_code=trusted)
            return self._tokenizer

    def close(self) -> None:
        """Free the model and its KV memory. Idempotent."""
        with self._lock:
            engine, self._engine, self._memories = self._engine, None, None
        if engine is not None:
            engine.close()


def _counted(
    prompts: Iterable[tuple[int, np.ndarray]], statistics: StageStatistics
) -> Iterator[tuple[int, np.ndarray]]:
    for prompt in prompts:
        statistics.started += 1
        yield prompt


def _requests(call: Call, prompts: Iterable[tuple[int, np.ndarray]], settings: Settings) -> Iterator[Request]:
    from llmsql.gpu_backend import Request

    grammar = _grammar(call)
    for row, token_ids in prompts:
        yield Request(
            id=row,
            token_ids=token_ids,
            max_tokens=call.output_tokens(settings.max_output_tokens),
            temperature=call.temperature,
            seed=call.seed,
            choices=call.choices,
            grammar=grammar,
        )


def _grammar(call: Call) -> Grammar | None:
    """What the answer is constrained to, where it is not one of a few choices."""
    from llmsql.gpu_backend import Grammar

    if call.choices is not None:
        return None
    if call.function == "llm_score":
        return Grammar.json_schema({"type": "number", "minimum": call.minimum, "maximum": call.maximum})
    if call.schema is not None:
        return Grammar.json_schema(call.schema)
    pattern = call.regex if call.regex is not None else call.answer_type.pattern
    return None if pattern is None else Grammar.regex(pattern)


class _Meter:
    """Carries the engine's counters of one call over into a stage's statistics while it runs."""

    def __init__(self, statistics: StageStatistics):
        from llmsql.gpu_backend import EngineStats

        self.stats = EngineStats()
        self._statistics = statistics
        self._before = self.stats.snapshot()
        self._seconds = time.perf_counter()

    def read(self) -> None:
        done, now = self.stats.difference(self._before), time.perf_counter()
        self._before = self.stats.snapshot()
        self._statistics.prompt_tokens += done.prompt_tokens
        self._statistics.computed_tokens += done.computed_tokens
        self._statistics.output_tokens += done.output_tokens
        self._statistics.model_seconds += now - self._seconds
        self._seconds = now
