"""The result of reordering: which row comes when, and which field stands where in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .dependencies import Dependency

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
    dependencies: tuple[Dependency, ...] = ()  # found or given; tree and ggr choose mutual ones as one column
    candidates: Mapping[str, int] = field(
        default_factory=dict
    )  # units found, partly shared cells included, by each method scored
    candidate_seconds: Mapping[str, float] = field(default_factory=dict)  # to plan and to count each
    capacity: int | None = None  # of the cache, in units; None is unbounded
    rows_too_long: int = 0  # left out of the figures, as they exceed the capacity

    @property
    def hit_rate(self) -> float:
        """Predicted share of units that need no computing, 0 to 1."""
        return self.share(self.hit_units + self.partial_units)

    @property
    def computed_units(self) -> int:
        """Units that an earlier prompt does not have as a prefix."""
        return self.units - self.hit_units - self.partial_units

    def share(self, units: int) -> float:
        """Such units as a share of all, 0 to 1."""
        return units / self.units if self.units else 0.0


@dataclass(frozen=True)
class Ordering:
    """A permutation of the rows and, for each shown row, of its fields."""

    rows: npt.NDArray[np.int64]  # [rows] table rows in the order in which they are shown
    fields: npt.NDArray[np.int32]  # [rows, columns] for each shown row its columns in prompt order
    stats: OrderingStats
    # for unordered list fields by name: for each shown row the positions of its items as shown, [rows, most items]
    items: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def explain(self) -> str:
        """For people: rows, units before and after, dependencies, and what each method that was scored would reach."""
        stats = self.stats
        unit = stats.unit
        facts = [
            ("rows", f"{stats.num_rows:,} -> {stats.num_distinct:,} distinct, {stats.num_columns:,} columns"),
            (unit, f"{stats.units:,} -> {stats.computed_units:,} to compute"),
            ("prefix hit rate", f"{stats.hit_rate:.1%} predicted, {stats.share(stats.hit_units):.1%} in whole cells"),
            ("method", f"{stats.chosen}, {stats.seconds:.2f} s in all"),
        ]
        if stats.capacity is not None:
            left_out = f"; {stats.rows_too_long:,} rows exceed it and are not counted" if stats.rows_too_long else ""
            facts.append(("capacity", f"{stats.capacity:,} {unit}{left_out}"))
        facts += [("dependency", str(dependency)) for dependency in stats.dependencies[:MAX_LISTED]]
        if len(stats.dependencies) > MAX_LISTED:
            facts.append(("", f"and {len(stats.dependencies) - MAX_LISTED:,} more dependencies"))
        return "\n".join([*_aligned(facts), "", *self._methods()])

    def _methods(self) -> list[str]:
        stats = self.stats
        lines = [("scored", "hit rate", "seconds")]
        for name, hits in stats.candidates.items():
            seconds = f"{stats.candidate_seconds[name]:.2f}" if name in stats.candidate_seconds else ""
            lines.append((name, f"{stats.share(hits):.1%}", seconds))
        width = max(len(name) for name, _, _ in lines)
        return [f"{name:<{width}}  {rate:>8}  {seconds:>7}".rstrip() for name, rate, seconds in lines]


def _aligned(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {text}" for name, text in facts]
