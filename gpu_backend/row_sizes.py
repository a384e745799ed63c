"""With how many rows products are made: oneDNN compiles a kernel for each number of rows and keeps it."""

from __future__ import annotations

_TIMES = 4
_MAX_EXACT = 16


class RowSizes:
    """Rounds numbers of rows up to one of few sizes.

    Each kernel takes some 0.6 MB and about a millisecond to compile (oneDNN 3.12, AVX-512), for every shape of weights,
    and steps come in any number of tokens. A number that comes again and again is used as it is, up to 16 of them;
    others are padded to the next of four sizes between powers of two, 10 % more rows on average.
    """

    def __init__(self) -> None:
        self._times: dict[int, int] = {}
        self._exact: set[int] = set()

    def count(self, rows: int) -> None:
        """Say that a step makes products of so many rows."""
        if rows in self._exact or len(self._exact) == _MAX_EXACT:
            return
        self._times[rows] = self._times.get(rows, 0) + 1
        if self._times[rows] == _TIMES:
            self._exact.add(rows)

    def padded(self, rows: int) -> int:
        """The number of rows to multiply, at least `rows`."""
        if rows in self._exact or rows <= 2:
            return rows
        step = max(4, 1 << max(0, (rows - 1).bit_length() - 3))
        return -(-rows // step) * step
