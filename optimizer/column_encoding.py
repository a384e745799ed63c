"""Numbering the values of one column and rendering each distinct one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .literals import TEXT
from .rendering import is_binary, is_text, render_values

Codes = npt.NDArray[np.int32]
MAX_BYTES = 2**31 - 1  # that one array of text or binary with 32-bit offsets holds


def encode_column(column: pa.ChunkedArray, codes: Codes) -> pa.Array:
    """The rendered text of each distinct value in order of first occurrence, large_string [distinct].

    Writes to `codes` [rows] which of them each value is, -1 for NULL.
    Raises OptimizerError for a type that has no canonical text.
    """
    kind = column.type
    if pa.types.is_null(kind):
        codes[:] = -1
        return pa.array([], TEXT)
    if pa.types.is_dictionary(kind):
        return _encode_dictionary(column.unify_dictionaries(), codes)
    if _is_nested(kind):
        return _encode_distinct(pa.chunked_array([render_values(chunk) for chunk in column.chunks], TEXT), codes)
    if is_text(kind) and (pa.types.is_string_view(kind) or column.nbytes > MAX_BYTES):
        column = pc.cast(column, TEXT)
    elif is_binary(kind) and column.nbytes > MAX_BYTES:
        column = pc.cast(column, pa.large_binary())
    texts = render_values(_encode_distinct(column, codes))
    if pa.types.is_floating(kind):  # 0.0 and -0.0, or two NaNs, are one cell
        again = texts.dictionary_encode()
        _translate(codes, again.indices.to_numpy())
        texts = again.dictionary
    return texts


def _encode_distinct(column: pa.ChunkedArray, codes: Codes) -> pa.Array:
    encoded = column.dictionary_encode()  # every chunk has the dictionary of the whole column
    start = 0
    for chunk in encoded.chunks:
        codes[start : start + len(chunk)] = _indices(chunk.indices)
        start += len(chunk)
    return encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], column.type)


def _encode_dictionary(column: pa.ChunkedArray, codes: Codes) -> pa.Array:
    """A dictionary may hold NULL, the same value twice, and values that no row has."""
    if not len(column):
        return pa.array([], TEXT)
    dictionary = column.chunk(0).dictionary
    inner = np.empty(len(dictionary), dtype=np.int32)
    texts = encode_column(pa.chunked_array([dictionary]), inner)
    _encode_distinct(column, codes)
    _translate(codes, inner)
    used = np.flatnonzero(np.bincount(codes + 1, minlength=len(texts) + 1)[1:])
    if len(used) == len(texts):
        return texts
    number = np.zeros(len(texts), dtype=np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    _translate(codes, number)
    return texts.take(pa.array(used))


def _translate(codes: Codes, numbers: npt.NDArray[np.integer]) -> None:
    """Replace each code by its number; -1 stays."""
    codes[:] = np.append(numbers, np.int32(-1))[codes]


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind) or isinstance(kind, pa.BaseExtensionType))


def _indices(indices: pa.Array) -> Codes:
    codes: Codes = pc.cast(indices, pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    return codes
