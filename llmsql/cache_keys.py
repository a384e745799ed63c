"""The keys under which answers are cached: digests of all that an answer depends on, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from llmsql.functions import Call
from llmsql.optimizer import encode
from llmsql.settings import ENGINE_SWITCHES, Settings

VERSION = 1  # to be raised whenever prompts are put together in another way
DIGEST_SIZE = 16
SWITCHES = ("plan", "deduplicate", "reorder", *ENGINE_SWITCHES)


def row_keys(call: Call, fields: pa.Table, settings: Settings, model: bytes) -> list[bytes]:
    """A key for each row of `fields`.

    Args:
        call: its prompt, options and effective `max_tokens` count; `on_error` and the model's name do not.
        fields: [rows]; a set of name and value, so their order does not count unless the call pins it, NULLs never do.
        settings: what they leave open is settled by them: the longest answer, the number type.
        model: the model's fingerprint.
    """
    common = _digest(json.dumps(_common(call, settings), ensure_ascii=False, sort_keys=True, default=str), model)
    cells = encode(fields)
    columns = list(range(fields.num_columns))
    if call.reorder:
        columns.sort(key=lambda column: cells.names[column])
    # Each distinct cell is digested once; a cell's text holds the field's name.
    parts = np.zeros((fields.num_rows, len(columns), DIGEST_SIZE), np.uint8)
    for place, column in enumerate(columns):
        digests = b"".join([_digest(text) for text in cells.texts[column].to_pylist()] + [bytes(DIGEST_SIZE)])
        table = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_SIZE)
        parts[:, place] = table[cells.codes[:, column]]  # NULL is code -1: the last entry
    filled = cells.codes[:, columns] >= 0
    whole = np.count_nonzero(filled, axis=1) == len(columns)
    return [
        _digest(parts[row].tobytes() if whole[row] else parts[row, filled[row]].tobytes(), common)
        for row in range(fields.num_rows)
    ]


def _common(call: Call, settings: Settings) -> dict[str, Any]:
    shown = call.options()
    shown.update(
        version=VERSION,
        prompt=call.prompt,
        max_tokens=None if call.choices is not None else call.output_tokens(settings.max_output_tokens),
        pinned=not call.reorder,
        dtype=settings.dtype,
        # Who switches an optimisation off wants to see answers that were made without it.
        off=[name for name in SWITCHES if not getattr(settings, name)]
        + ([settings.kernels] if settings.kernels != "auto" else []),
    )
    return shown


def _digest(data: str | bytes, before: bytes = b"") -> bytes:
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(before + data, digest_size=DIGEST_SIZE).digest()
