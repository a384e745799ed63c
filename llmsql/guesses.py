"""What a dry run does not know: which columns hold guesses, and how many rows depend on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llmsql.forecast import AT_MOST, EXACT, LEVELS, DryRun, forecast, over_budget
from llmsql.functions import Call
from llmsql.planner import Filters, Plan, Stage
from llmsql.planner.loosening import Loosened, loosen
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics


class Guesses:
    """What a dry run knows while it goes on: which columns hold guesses, and what the stages would ask.

    Args:
        dialect: of the plan's SQL.
    """

    def __init__(self, dialect: str = "duckdb"):
        self._dialect = dialect
        self._unknown: set[tuple[str, str]] = set()  # columns that hold guesses
        self._levels: dict[str, int] = {}  # of the relations that are not exact
        self._forecasts: list[tuple[Stage, StageStatistics, int]] = []

    def loosened(self, sql: str) -> Loosened:
        """The query without the conditions that depend on guesses."""
        return loosen(sql, self._unknown, self._dialect)

    def counted(self, stage: Stage) -> StageStatistics | None:
        """What a stage that ran would ask; two predicates may share it."""
        return next((statistics for known, statistics, _ in self._forecasts if known == stage), None)

    def has(self, name: str) -> bool:
        """Whether a relation of answers holds guesses."""
        return any(known == name.lower() for known, _ in self._unknown)

    @property
    def number(self) -> int:
        """How many columns hold guesses."""
        return len(self._unknown)

    def level(self, found: Loosened, at_least: str = EXACT) -> int:
        """How certain the number of rows of a query is."""
        names = found.sql.lower()
        inherited = max((level for name, level in self._levels.items() if name in names), default=0)
        return max(LEVELS.index(at_least), inherited, 0 if not found.depends else 1 if found.bounds else 2)

    def note_relation(self, name: str, found: Loosened, columns: Callable[[], Sequence[str]]) -> None:
        """A relation was made of a query; `columns` gives the names of its columns."""
        level = self.level(found)
        if level:
            self._levels[name.lower()] = level
        if found.unknown:
            names = columns()
            self._unknown |= {(name.lower(), names[place].lower()) for place in found.unknown if place < len(names)}

    def note_stage(self, stage: Stage, statistics: StageStatistics, level: int, guessed: bool) -> None:
        """A stage ran dry."""
        if guessed:
            self._unknown.add((stage.name.lower(), stage.value.lower()))
        self._forecasts.append((stage, statistics, level))

    def result(self, sql: str, plan: Plan, settings: Settings) -> DryRun:
        """All that was found."""
        stages = tuple(forecast(*found) for found in self._forecasts)
        return DryRun(sql, plan.explain(), stages, plan.in_place, over_budget(stages, settings))


def least_certain(step: Filters) -> str:
    """What is known of the rows that predicates see: others may go first, or enough rows come early."""
    return AT_MOST if len(step.filters) > 1 or step.enough is not None else EXACT


def tolerant(call: Call) -> Call:
    """A guess that is no answer must not stop the statement."""
    return call if call.returns_error else replace(call, on_error=None)
