"""Dense ids for equal keys: the one primitive that every pass over cell codes is built from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
MAX_KEY = 2**62


def group_keys(keys: Ints) -> Ints:
    """Ids 0, 1, ... of the distinct keys in order of first occurrence; int64, same shape as `keys`."""
    if len(keys) == 0:
        return np.zeros(0, dtype=np.int64)
    ids: Ints = pa.array(keys).dictionary_encode().indices.to_numpy().astype(np.int64)
    return ids


def group_rows(codes: npt.NDArray[np.integer]) -> Ints:
    """Ids of the distinct rows of a code matrix [rows, columns] (codes from -1) in order of first occurrence."""
    rows, columns = codes.shape
    ids = np.zeros(rows, dtype=np.int64)
    size = 1  # ids are below it
    for column in range(columns if rows else 0):
        values = int(codes[:, column].max()) + 2
        if size > MAX_KEY // values:
            ids = group_keys(ids)
            size = int(ids.max()) + 1
        ids = ids * values + codes[:, column] + 1
        size *= values
    return group_keys(ids)


def first_of_group(ids: Ints) -> Ints:
    """The first position of each dense id; `ids` are numbered in order of first occurrence."""
    if len(ids) == 0:
        return np.zeros(0, dtype=np.int64)
    highest = np.maximum.accumulate(ids)
    return np.concatenate([[0], np.flatnonzero(highest[1:] > highest[:-1]) + 1]).astype(np.int64)
