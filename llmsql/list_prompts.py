"""Prompts about a list of items, the rows of a group: their tokens, and what stands around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.optimizer import Cells, encode
from llmsql.prompt import DATA_CLOSE, DATA_OPEN, question

if TYPE_CHECKING:
    from llmsql.gpu_backend import PromptTokenizer


@dataclass(frozen=True)
class ListPrompts:
    """Instruction first, then the items of a list, one a line, in their order: the rows of a group for llm_agg."""

    lines: list[list[int]]  # of each prompt, as places in `tokens` and `texts`
    texts: list[str]
    tokens: list[np.ndarray]  # of each distinct line
    frame: ListFrame
    tokenizer: PromptTokenizer

    @classmethod
    def of(cls, call: Call, fields: pa.Table, tokenizer: PromptTokenizer) -> ListPrompts:
        """The prompts of `call` about the lists in the first column of `fields`."""
        lists = fields.column(0).combine_chunks()
        items = encode(pa.table({"": lists.flatten()}))
        texts = item_lines(items)
        lengths = np.array([len(found or ()) for found in lists.to_pylist()], np.int64)
        codes = np.split(items.codes[:, 0], np.cumsum(lengths)[:-1])
        lines = [[int(code) for code in found if code >= 0] for found in codes]
        frame = ListFrame.of(call, fields.column_names[0], tokenizer)
        return cls(lines, texts, tokenizer.encode_cells(texts), frame, tokenizer)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(row, token ids)."""
        frame = self.frame
        if self.tokenizer.additive:
            for row, codes in enumerate(self.lines):
                yield row, np.concatenate([frame.head, *(self.tokens[code] for code in codes), frame.tail])
            return
        users = (frame.opening + "".join(self.texts[c] for c in codes) + frame.closing for codes in self.lines)
        yield from enumerate(self.tokenizer.chat_prompts(users, frame.system))

    def estimate(self) -> Estimate:
        """Counted as if prompts shared their instruction only."""
        rows, head, tail = len(self.lines), len(self.frame.head), len(self.frame.tail)
        total = rows * (head + tail) + sum(len(self.tokens[code]) for codes in self.lines for code in codes)
        return Estimate(rows, total, total - max(rows - 1, 0) * head)


@dataclass(frozen=True)
class ListFrame:
    """What stands around the items of a list in a prompt, as text and as tokens."""

    opening: str
    closing: str
    system: str | None
    head: np.ndarray
    tail: np.ndarray

    @classmethod
    def of(cls, call: Call, name: str, tokenizer: PromptTokenizer) -> ListFrame:
        """The frame of `call` about a list called `name`."""
        assert call.prompt is not None
        opening = f"{question(call.prompt, call.wanted)}{DATA_OPEN}{json.dumps(name, ensure_ascii=False)}: [\n"
        closing = "],\n" + DATA_CLOSE
        head, tail = tokenizer.chat_frame(call.system, opening=opening, closing=closing)
        return cls(opening, closing, call.system, head, tail)


def item_lines(items: Cells) -> list[str]:
    """The lines of the distinct items of a list, encoded as a column without a name."""
    return [text.removeprefix('"": ') for text in items.texts[0].to_pylist()]
