"""What a query did: rows, distinct rows, tokens, seconds. Kept as `session.last_query`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from llmsql.estimate import hit_rate


@dataclass(frozen=True)
class RowFailure:
    """One failed row: which call, the values it was asked about (of long ones the beginning), and why it failed."""

    call: str
    values: dict[str, object]
    error: str


MAX_KEPT_FAILURES = 1000
MAX_KEPT_CHARACTERS = 1000  # of a failed row's value: the rows that fail are often those that are too long
_COUNTERS = (
    "rows",
    "distinct",
    "asked",
    "cached",
    "prompt_tokens",
    "computed_tokens",
    "output_tokens",
    "reorder_seconds",
    "model_seconds",
    "failed",
    "truncated",
)
STATISTICS_SCHEMA = pa.schema(
    [
        ("call", pa.string()),
        ("place", pa.string()),
        *((name, pa.float64() if name.endswith("seconds") else pa.int64()) for name in _COUNTERS),
        ("hit_rate", pa.float64()),
        ("predicted_hit_rate", pa.float64()),
    ]
)
ERRORS_SCHEMA = pa.schema([("call", pa.string()), ("row", pa.string()), ("error", pa.string())])


@dataclass
class StageStatistics:
    """Counters of one LLM call of a statement.

    rows: rows whose value was needed, duplicates included; distinct: distinct argument tuples among them;
    cached: rows whose answers the result cache knew; asked: rows given to the model; prompt_tokens: tokens of their
    prompts; computed_tokens: prompt tokens that really went through the model, the rest were shared prefixes;
    output_tokens: generated tokens; failed, truncated: rows. `watchers` are called by `tick` while the model works.
    `more` tells the model that it is asked about other rows like these too, in batches of their own.
    """

    call: str = ""
    place: str = ""
    rows: int = 0
    distinct: int = 0
    asked: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    predicted_hit_rate: float | None = None
    reorder_seconds: float = 0.0
    model_seconds: float = 0.0
    failed: int = 0
    truncated: int = 0
    failures: list[RowFailure] = field(default_factory=list)
    more: bool = False
    started: int = 0  # rows whose prompts the model has taken in
    watchers: list[Callable[[], None]] = field(default_factory=list, repr=False, compare=False)

    def tick(self) -> None:
        """Let those who watch the work look at it; a model calls this at least once a step.

        What a watcher raises (a budget is used up, the statement was interrupted) must end the work.
        """
        for watcher in self.watchers:
            watcher()

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that did not have to be computed, 0 to 1."""
        return hit_rate(self.prompt_tokens, self.computed_tokens)

    def add(self, part: StageStatistics) -> None:
        """Add the counters of a part of the same call's work."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.failures += part.failures[: MAX_KEPT_FAILURES - len(self.failures)]

    def add_failure(self, values: dict[str, object], error: str) -> None:
        """Count a failed row and keep its reason (the first thousand of them)."""
        self.failed += 1
        if len(self.failures) < MAX_KEPT_FAILURES:
            kept = {name: _beginning(value) for name, value in values.items()}
            self.failures.append(RowFailure(self.call, kept, error))


def _beginning(value: object) -> object:
    """The value, or where it is long the beginning of its text."""
    text = value if isinstance(value, str) else str(value)
    return value if len(text) <= MAX_KEPT_CHARACTERS else text[:MAX_KEPT_CHARACTERS] + "…"


@dataclass
class QueryStatistics:
    """Counters of one statement, a `StageStatistics` for each LLM call in it."""

    sql: str = ""
    plan: str = ""
    stages: list[StageStatistics] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)  # what was chosen while running, and why
    seconds: float = 0.0

    @property
    def model_calls(self) -> int:
        """How many rows the model was asked about."""
        return sum(stage.asked for stage in self.stages)

    @property
    def cached(self) -> int:
        """How many rows the result cache answered."""
        return sum(stage.cached for stage in self.stages)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that went through the model."""
        return sum(stage.computed_tokens for stage in self.stages)

    @property
    def output_tokens(self) -> int:
        """Generated tokens."""
        return sum(stage.output_tokens for stage in self.stages)

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that did not have to be computed, 0 to 1."""
        return hit_rate(self.prompt_tokens, self.computed_tokens)

    @property
    def errors(self) -> list[RowFailure]:
        """The failed rows and why they failed."""
        return [failure for stage in self.stages for failure in stage.failures]

    def to_arrow(self) -> pa.Table:
        """The counters as a table with one row per call."""
        rows = [
            {
                "call": stage.call,
                "place": stage.place,
                **{name: getattr(stage, name) for name in _COUNTERS},
                "hit_rate": stage.hit_rate,
                "predicted_hit_rate": stage.predicted_hit_rate,
            }
            for stage in self.stages
        ]
        return pa.Table.from_pylist(rows, STATISTICS_SCHEMA)

    def errors_to_arrow(self) -> pa.Table:
        """The failed rows as a table: the call, the row's values as JSON, and why it failed."""
        rows = [
            {
                "call": failure.call,
                "row": json.dumps(failure.values, ensure_ascii=False, default=str),
                "error": failure.error,
            }
            for failure in self.errors
        ]
        return pa.Table.from_pylist(rows, ERRORS_SCHEMA)

    def report(self) -> str:
        """The counters as a table in plain text."""
        head = (
            "call",
            "rows",
            "distinct",
            "cached",
            "asked",
            "prompt tokens",
            "computed",
            "hit rate",
            "output",
            "seconds",
        )
        lines: list[tuple[str, ...]] = [head]
        for stage in self.stages:
            lines.append(
                (
                    shortened_call(stage.call),
                    f"{stage.rows:,}",
                    f"{stage.distinct:,}",
                    f"{stage.cached:,}",
                    f"{stage.asked:,}",
                    f"{stage.prompt_tokens:,}",
                    f"{stage.computed_tokens:,}",
                    f"{stage.hit_rate:.1%}",
                    f"{stage.output_tokens:,}",
                    f"{stage.model_seconds:.2f}",
                )
            )
        text = [*aligned(lines), *self.decisions]
        failed = sum(stage.failed for stage in self.stages)
        if failed:
            text.append(f"{failed:,} rows failed and are NULL; the reasons are in last_query.errors")
        return "\n".join(text)


def shortened_call(call: str, characters: int = 48) -> str:
    """A call for the first column of a table in text, or another place with little room."""
    return call if len(call) <= characters else call[: characters - 1] + "…"


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table in plain text: the first column begins, all others end at one place."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])
        for line in lines
    ]
