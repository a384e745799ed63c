"""The result of reordering: which row comes when, and which field stands where in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MAX_LISTED = 10


@dataclass(frozen=True)
class OrderingStats:
    """What reordering found; units are characters or tokens, as the lengths of the cells are."""

    method: str  # the method asked for
    chosen: str  # the method whose ordering this is; differs under "auto"
    num_rows: int
    num_distinct: int
    num_columns: int
    units: int  # in all prompt bodies
    hit_units: int  # of them in whole cells that an earlier prompt has too, behind the same prefix
    partial_units: int  # of them in the begin of the first cell that differs; an estimate unless in characters
    unit: str
    seconds: float  # encoding included where a table was given
    equivalent: tuple[tuple[str, ...], ...] = ()  # columns that determine each other, chosen as one by ggr and tree
    candidates: Mapping[str, int] = field(
        default_factory=dict
    )  # units found, partly shared cells included, by each method scored
    rows_too_long: int = 0  # left out of the figures, as they exceed the capacity that was given

    @property
    def hit_rate(self) -> float:
        """Predicted share of units that need no computing, 0 to 1."""
        return (self.hit_units + self.partial_units) / self.units if self.units else 0.0


@dataclass(frozen=True)
class Ordering:
    """A permutation of the rows and, for each shown row, of its fields."""

    rows: npt.NDArray[np.int64]  # [rows] table rows in the order in which they are shown
    fields: npt.NDArray[np.int32]  # [rows, columns] for each shown row its columns in prompt order
    stats: OrderingStats
    # for unordered list fields by name: for each shown row the positions of its items as shown, [rows, most items]
    items: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def explain(self) -> str:
        """A few lines for people: rows, distinct rows, units, predicted hit rate, and what the candidates reached."""
        stats = self.stats
        lines = [
            f"rows {stats.num_rows:,} -> distinct {stats.num_distinct:,}, columns {stats.num_columns:,}",
            f"{stats.unit} {stats.units:,} -> computed {stats.units - stats.hit_units - stats.partial_units:,}",
            f"predicted prefix hit rate {stats.hit_rate:.1%} (method {stats.chosen}, {stats.seconds:.2f} s)",
        ]
        lines += [f"chosen as one: {' = '.join(names)}" for names in stats.equivalent[:MAX_LISTED]]
        if stats.rows_too_long:
            lines.append(f"{stats.rows_too_long:,} rows exceed the capacity by themselves and are not counted")
        for name, hits in stats.candidates.items():
            rate = hits / stats.units if stats.units else 0.0
            lines.append(f"  {name}: {rate:.1%}")
        return "\n".join(lines)
