"""The embedded engine as a `Model`: encode, reorder, tokenize, run."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from llmsql.errors import ModelError
from llmsql.functions import Call
from llmsql.model import Answer
from llmsql.optimizer import Cells, Ordering, encode, prefix_hits, reorder
from llmsql.prompt import DATA_CLOSE, DATA_OPEN, Template, parse_template, question
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

if TYPE_CHECKING:
    from llmsql.gpu_backend import Completion, Engine, PromptTokenizer, Request


class EmbeddedModel:
    """A language model in this process. The weights are loaded at the first question; `close` frees them."""

    def __init__(self, name: str, engine_options: dict[str, Any], key: tuple[object, ...]):
        self.name = name
        self.key = key
        self._options = engine_options
        self._engine: Engine | None = None
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
                try:
                    self._engine = Engine(self.name, **self._options)
                except EngineError as problem:
                    raise ModelError(str(problem)) from problem
            return self._engine

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """Order the rows and their fields for prefix reuse, and run them."""
        from llmsql.gpu_backend import EngineError

        engine = self.engine
        try:
            prompts = _prompts(call, fields, engine.tokenizer, settings, statistics)
            before, started = engine.stats.snapshot(), time.perf_counter()
            completions = cast("Generator[Completion, None, None]", engine.generate(_requests(call, prompts, settings)))
            try:
                for completion in completions:
                    assert isinstance(completion.id, int)
                    yield Answer(
                        row=completion.id,
                        text=None if completion.error else completion.text,
                        error=completion.error,
                        truncated=completion.finish_reason == "length",
                    )
            finally:
                completions.close()
                done = engine.stats.difference(before)
                statistics.prompt_tokens += done.prompt_tokens
                statistics.computed_tokens += done.computed_tokens
                statistics.output_tokens += done.output_tokens
                statistics.model_seconds += time.perf_counter() - started
        except EngineError as problem:
            raise ModelError(str(problem)) from problem

    def close(self) -> None:
        """Free the model and its KV memory. Idempotent."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _requests(call: Call, prompts: Iterator[tuple[int, np.ndarray]], settings: Settings) -> Iterator[Request]:
    from llmsql.gpu_backend import Request

    for row, token_ids in prompts:
        yield Request(
            id=row,
            token_ids=token_ids,
            max_tokens=call.max_tokens or settings.max_tokens,
            temperature=call.temperature,
            seed=call.seed,
            choices=call.choices,
        )


def _prompts(
    call: Call, fields: pa.Table, tokenizer: PromptTokenizer, settings: Settings, statistics: StageStatistics
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, token ids) in the order in which the engine is to see them."""
    assert call.prompt is not None
    template = parse_template(call.prompt, fields.column_names)
    if template is not None:
        return _placed_prompts(call, template, fields, tokenizer, settings)
    return _free_prompts(call, fields, tokenizer, settings, statistics)


def _free_prompts(
    call: Call, fields: pa.Table, tokenizer: PromptTokenizer, settings: Settings, statistics: StageStatistics
) -> Iterator[tuple[int, np.ndarray]]:
    """Instruction first, then the fields in the order that shares most: each distinct cell is tokenized once."""
    assert call.prompt is not None
    started = time.perf_counter()
    cells = encode(fields)
    tokens = [tokenizer.encode_cells(texts.to_pylist()) for texts in cells.texts]
    lengths = [np.fromiter((len(ids) for ids in column), np.int64, len(column)) for column in tokens]
    cells = cells.with_lengths(lengths)
    ordering = order(cells, call, settings)
    statistics.reorder_seconds += time.perf_counter() - started
    prefix, suffix = tokenizer.chat_frame(call.system)
    opening = question(call.prompt, call.choices) + DATA_OPEN
    if statistics.predicted_hit_rate is None:
        statistics.predicted_hit_rate = _predicted_hit_rate(
            cells,
            ordering,
            tokens,
            len(prefix) + len(tokenizer.encode(opening)),
            len(tokenizer.encode(DATA_CLOSE)) + len(suffix),
        )
    if not tokenizer.additive:
        return _whole_prompts(cells, ordering, opening, tokenizer, prefix, suffix)
    head = np.concatenate([prefix, tokenizer.encode(opening)])
    tail = np.concatenate([tokenizer.encode(DATA_CLOSE), suffix])
    return _concatenated_prompts(cells, ordering, tokens, head, tail)


def order(cells: Cells, call: Call, settings: Settings) -> Ordering:
    """The order in which rows and fields are shown; answers never depend on it, costs do.

    `reorder := false` pins the fields of a call and only sorts its rows; the session's switch turns both off.
    """
    method = "none" if not settings.reorder else "auto" if call.reorder else "sort"
    return reorder(cells, method=method)


def _predicted_hit_rate(
    cells: Cells, ordering: Ordering, tokens: list[list[np.ndarray]], head: int, tail: int
) -> float:
    """Share of prompt tokens in prefixes that an earlier prompt had: the head after the first row, and shared cells."""
    rows = len(ordering.rows)
    hits = prefix_hits(cells, ordering, partial=False, token_ids=tokens)
    total = hits.units_total + rows * (head + tail)
    return (hits.units_hit + hits.units_partial + max(rows - 1, 0) * head) / total if total else 0.0


def _concatenated_prompts(
    cells: Cells, ordering: Ordering, tokens: list[list[np.ndarray]], head: np.ndarray, tail: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for row, columns in zip(ordering.rows, ordering.fields):
        codes = cells.codes[row]
        pieces = [tokens[column][codes[column]] for column in columns if codes[column] >= 0]
        yield int(row), np.concatenate([head, *pieces, tail])


def _whole_prompts(
    cells: Cells, ordering: Ordering, opening: str, tokenizer: PromptTokenizer, prefix: np.ndarray, suffix: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """For tokenizers whose tokens may cross the end of a cell: each prompt is tokenized as one text."""
    texts = [texts.to_pylist() for texts in cells.texts]
    for row, columns in zip(ordering.rows, ordering.fields):
        codes = cells.codes[row]
        body = "".join(texts[column][codes[column]] for column in columns if codes[column] >= 0)
        yield int(row), np.concatenate([prefix, tokenizer.encode(opening + body + DATA_CLOSE), suffix])


def _placed_prompts(
    call: Call, template: Template, fields: pa.Table, tokenizer: PromptTokenizer, settings: Settings
) -> Iterator[tuple[int, np.ndarray]]:
    """Prompts with fields placed in their text. Fields keep their places, so only rows can be sorted.

    Fields that the prompt does not place follow as data, in the order in which they are written.
    """
    prefix, suffix = tokenizer.chat_frame(call.system)
    placed = [_plain_texts(fields.column(name)) for name in template.fields]
    others = fields.select([name for name in fields.column_names if name not in template.fields])
    cells = encode(others) if others.num_columns else None
    data = [texts.to_pylist() for texts in cells.texts] if cells is not None else []

    def text(row: int) -> str:
        user = question(template.fill([column[row] for column in placed]), call.choices)
        if cells is None:
            return user.removesuffix("\n")
        body = "".join(data[column][code] for column, code in enumerate(cells.codes[row]) if code >= 0)
        return user + DATA_OPEN + body + DATA_CLOSE

    rows = range(fields.num_rows)
    shown = sorted(rows, key=text) if settings.reorder else rows
    for row in shown:
        yield row, np.concatenate([prefix, tokenizer.encode(text(row)), suffix])


def _plain_texts(column: pa.ChunkedArray) -> list[str]:
    """Values as they stand in a sentence: texts bare, NULL as nothing, all else as in the data's JSON."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [value or "" for value in column.to_pylist()]
    cells = encode(pa.table({"": column}))
    texts = [text.removeprefix('"": ').removesuffix(",\n").strip('"') for text in cells.texts[0].to_pylist()]
    return [texts[code] if code >= 0 else "" for code in cells.codes[:, 0]]
