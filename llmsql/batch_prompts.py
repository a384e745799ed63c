"""The prompts of a batch of rows: their tokens, in the order that shares most, and what they will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.list_prompts import ListPrompts
from llmsql.optimizer import Cells, Ordering, arrange_items, encode, prefix_hits, reorder
from llmsql.prompt import DATA_CLOSE, DATA_OPEN, Template, parse_template, question
from llmsql.settings import Settings

if TYPE_CHECKING:
    from llmsql.gpu_backend import PromptTokenizer

TOKENIZED_AT_A_TIME = 4096


def prepare_prompts(
    call: Call,
    fields: pa.Table,
    tokenizer: PromptTokenizer,
    settings: Settings,
    tick: Callable[[], None] = lambda: None,
    reorder_cells: Callable[[Cells], Ordering] = reorder,
) -> FreePrompts | PlacedPrompts | ListPrompts:
    """The prompts of `call` for every row of `fields`, one batch; iterate for (row, token ids) as the engine sees them.

    Each distinct cell is tokenized here, once; whole prompts only while they are iterated. `tick` is called now and
    again; what it raises ends the work. `reorder_cells` orders rows and fields where both are free.
    """
    assert call.prompt is not None
    if call.is_aggregate:
        return ListPrompts.of(call, fields, tokenizer)
    template = parse_template(call.prompt, fields.column_names)
    if template is not None:
        return PlacedPrompts(call, template, fields, tokenizer, sort=settings.reorder)
    ordering = None
    if call.unordered and call.reorder and settings.reorder:
        # The items are put in place by their characters; what they share is then found in tokens like all else.
        ordering = reorder(fields, unordered=call.unordered)
        fields = arrange_items(fields, ordering)
    cells = encode(fields)
    tokens = [_tokenized(texts.to_pylist(), tokenizer, tick) for texts in cells.texts]
    lengths = [np.fromiter((len(ids) for ids in column), np.int64, len(column)) for column in tokens]
    cells = cells.with_lengths(lengths)
    opening = question(call.prompt, call.wanted) + DATA_OPEN
    if ordering is None:
        ordering = reorder_cells(cells) if is_free(call, settings) else order(cells, call, settings)
    head, tail = tokenizer.chat_frame(call.system, opening=opening, closing=DATA_CLOSE)
    return FreePrompts(cells, tokens, ordering, opening, tokenizer, call.system, head, tail)


def _tokenized(texts: list[str], tokenizer: PromptTokenizer, tick: Callable[[], None]) -> list[np.ndarray]:
    """The tokens of each text; in parts, since a part cannot be interrupted."""
    tokens: list[np.ndarray] = []
    for start in range(0, len(texts), TOKENIZED_AT_A_TIME):
        tick()
        tokens += tokenizer.encode_cells(texts[start : start + TOKENIZED_AT_A_TIME])
    return tokens


def is_free(call: Call, settings: Settings) -> bool:
    """Whether rows and whole fields may be shown in any order."""
    return call.reorder and settings.reorder and not call.unordered


def order(cells: Cells, call: Call, settings: Settings) -> Ordering:
    """The order in which rows and fields are shown; answers never depend on it, costs do.

    `reorder := false` pins the fields of a call and only sorts its rows; the session's switch turns both off.
    """
    method = "none" if not settings.reorder else "auto" if call.reorder else "sort"
    return reorder(cells, method=method)


@dataclass(frozen=True)
class FreePrompts:
    """Instruction first, then the fields as data, in the order that shares most."""

    cells: Cells
    tokens: list[list[np.ndarray]]  # of each distinct cell, per column
    ordering: Ordering
    opening: str
    tokenizer: PromptTokenizer
    system: str | None
    head: np.ndarray  # tokens of all that stands before the cells
    tail: np.ndarray

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(row, token ids), in the order in which the engine is to see them."""
        if not self.tokenizer.additive:
            yield from self._whole()
            return
        for row, columns in zip(self.ordering.rows, self.ordering.fields):
            codes = self.cells.codes[row]
            pieces = [self.tokens[column][codes[column]] for column in columns if codes[column] >= 0]
            yield int(row), np.concatenate([self.head, *pieces, self.tail])

    def _whole(self) -> Iterator[tuple[int, np.ndarray]]:
        """For tokenizers whose tokens may cross the end of a cell: each prompt is tokenized as one text."""
        texts = [texts.to_pylist() for texts in self.cells.texts]

        def users() -> Iterator[str]:
            for row, columns in zip(self.ordering.rows, self.ordering.fields):
                codes = self.cells.codes[row]
                body = "".join(texts[column][codes[column]] for column in columns if codes[column] >= 0)
                yield self.opening + body + DATA_CLOSE

        yield from zip(self.ordering.rows.tolist(), self.tokenizer.chat_prompts(users(), self.system))

    def estimate(self) -> Estimate:
        """Counted on the ordering: the head is shared by all prompts, cells by those that begin alike."""
        rows = len(self.ordering.rows)
        head, tail = len(self.head), len(self.tail)
        hits = prefix_hits(self.cells, self.ordering, partial=False, token_ids=self.tokens)
        total = hits.units_total + rows * (head + tail)
        found = hits.units_hit + hits.units_partial
        if self.ordering.stats.unit == self.cells.unit:  # whole cells in prompts of earlier batches
            found = min(found + max(self.ordering.stats.hit_units - hits.units_hit, 0), hits.units_total)
        return Estimate(rows, total, total - found - max(rows - 1, 0) * head)


@dataclass(frozen=True)
class PlacedPrompts:
    """Prompts with fields placed in their text. Fields keep their places, so only rows can be sorted.

    Fields that the prompt does not place follow as data, in the order in which they are written.
    """

    call: Call
    template: Template
    fields: pa.Table
    tokenizer: PromptTokenizer
    sort: bool

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(row, token ids), sorted by text."""
        texts = self._texts()
        rows = sorted(range(len(texts)), key=texts.__getitem__) if self.sort else range(len(texts))
        yield from zip(rows, self.tokenizer.chat_prompts((texts[row] for row in rows), self.call.system))

    def estimate(self) -> Estimate:
        """Tokenizes all prompts, and compares each with the one before it."""
        rows = total = shared = 0
        before = np.zeros(0, np.int32)
        for _, token_ids in self:
            length = min(len(before), len(token_ids))
            different = np.flatnonzero(before[:length] != token_ids[:length])
            shared += int(different[0]) if len(different) else length
            rows, total, before = rows + 1, total + len(token_ids), token_ids
        return Estimate(rows, total, total - shared)

    def _texts(self) -> list[str]:
        placed = [_plain_texts(self.fields.column(name)) for name in self.template.fields]
        others = self.fields.select([name for name in self.fields.column_names if name not in self.template.fields])
        cells = encode(others) if others.num_columns else None
        data = [texts.to_pylist() for texts in cells.texts] if cells is not None else []

        def text(row: int) -> str:
            user = question(self.template.fill([column[row] for column in placed]), self.call.wanted)
            if cells is None:
                return user.removesuffix("\n")
            body = "".join(data[column][code] for column, code in enumerate(cells.codes[row]) if code >= 0)
            return user + DATA_OPEN + body + DATA_CLOSE

        return [text(row) for row in range(self.fields.num_rows)]


def _plain_texts(column: pa.ChunkedArray) -> list[str]:
    """Values as they stand in a sentence: texts bare, NULL as nothing, all else as in the data's JSON."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [value or "" for value in column.to_pylist()]
    cells = encode(pa.table({"": column}))
    texts = [text.removeprefix('"": ').removesuffix(",\n").strip('"') for text in cells.texts[0].to_pylist()]
    return [texts[code] if code >= 0 else "" for code in cells.codes[:, 0]]
