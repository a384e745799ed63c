"""What a statement would ask and cost, as a report."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from llmsql.estimate import hit_rate
from llmsql.planner import Stage
from llmsql.planner.plan import InPlace
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics, aligned, shortened_call

EXACT, AT_MOST, ABOUT = "exact", "at most", "about"
LEVELS = (EXACT, AT_MOST, ABOUT)
FORECAST_SCHEMA = pa.schema(
    [
        ("call", pa.string()),
        ("place", pa.string()),
        ("certainty", pa.string()),
        *((name, pa.int64()) for name in ("rows", "distinct", "cached", "to_run")),
        *((name, pa.int64()) for name in ("prompt_tokens", "computed_tokens", "max_output_tokens")),
        ("hit_rate", pa.float64()),
    ]
)


@dataclass(frozen=True)
class StageForecast:
    """What one LLM call of a statement would cost.

    certainty: 'exact'; 'at most' where its rows depend on answers that are not known yet; 'about' where even more rows
    may come. rows, distinct: as in `StageStatistics`; cached: answers that the result cache has; to_run: rows the model
    would be asked about; prompt_tokens: of their prompts; computed_tokens: those of them that no earlier prompt begins
    with, by the optimizer's own count; max_output_tokens: generated tokens at most. Tokens are None where the model
    cannot count them without being loaded.
    """

    name: str
    call: str
    place: str
    certainty: str
    rows: int
    distinct: int
    cached: int
    to_run: int
    prompt_tokens: int | None
    computed_tokens: int | None
    max_output_tokens: int | None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that need not be computed, 0 to 1."""
        if self.prompt_tokens is None or self.computed_tokens is None:
            return None
        return hit_rate(self.prompt_tokens, self.computed_tokens)

    def __str__(self) -> str:
        kind = "" if self.certainty == EXACT else f"{self.certainty} "
        text = (
            f"{kind}{self.rows:,} rows → {self.distinct:,} distinct → {self.cached:,} cached → {self.to_run:,} to run"
        )
        if self.to_run and self.prompt_tokens is not None:
            text += (
                f"; {self.prompt_tokens:,} prompt tokens, {self.computed_tokens:,} to compute "
                f"(hit rate {self.hit_rate:.1%})"
            )
        if self.max_output_tokens:
            text += f", at most {self.max_output_tokens:,} to generate"
        return text


@dataclass(frozen=True)
class DryRun:
    """What a statement would ask and cost; `print` it, or take it as Arrow.

    plan: as text. in_place: calls that stay in the statement, whose rows are not known before it runs.
    over_budget: which limit would stop the statement, or None.
    """

    sql: str
    plan: str
    stages: tuple[StageForecast, ...]
    in_place: tuple[InPlace, ...]
    over_budget: str | None

    @property
    def to_run(self) -> int:
        """Rows that the model would be asked about, by all stages."""
        return sum(stage.to_run for stage in self.stages)

    def to_arrow(self) -> pa.Table:
        """One row per stage."""
        rows = [{field.name: getattr(stage, field.name) for field in FORECAST_SCHEMA} for stage in self.stages]
        return pa.Table.from_pylist(rows, FORECAST_SCHEMA)

    def report(self) -> str:
        """The stages as a table in plain text, then what is not known and what would stop it."""
        head = ("call", "", "rows", "distinct", "cached", "to run", "prompt tokens", "computed", "hit rate", "output ≤")
        lines: list[tuple[str, ...]] = [head]
        for stage in self.stages:
            counts = (stage.rows, stage.distinct, stage.cached, stage.to_run)
            tokens = (stage.prompt_tokens, stage.computed_tokens)
            lines.append(
                (
                    shortened_call(stage.call),
                    stage.certainty,
                    *(f"{count:,}" for count in counts),
                    *("?" if count is None else f"{count:,}" for count in tokens),
                    "?" if stage.hit_rate is None else f"{stage.hit_rate:.1%}",
                    "?" if stage.max_output_tokens is None else f"{stage.max_output_tokens:,}",
                )
            )
        text = aligned(lines)
        for left in self.in_place:
            text.append(f"{left.call_sql} is asked row by row where it stands: {left.reason}")
        if self.over_budget is not None:
            text.append(f"the budget would stop it: {self.over_budget}")
        return "\n".join(text)

    def __str__(self) -> str:
        return self.report()


def forecast(stage: Stage, counted: StageStatistics, level: int) -> StageForecast:
    """What a stage would cost that ran dry; `level`: the place of its certainty in `LEVELS`."""
    known = counted.prompt_tokens > 0 or not counted.asked
    return StageForecast(
        name=stage.name,
        call=stage.call_sql,
        place=stage.place,
        certainty=LEVELS[level],
        rows=counted.rows,
        distinct=counted.distinct,
        cached=counted.cached,
        to_run=counted.asked,
        prompt_tokens=counted.prompt_tokens if known else None,
        computed_tokens=counted.computed_tokens if known else None,
        max_output_tokens=counted.output_tokens if known else None,
    )


def over_budget(stages: tuple[StageForecast, ...], settings: Settings) -> str | None:
    """Which limit the statement would meet, as far as that is known."""
    rows = sum(stage.to_run for stage in stages)
    kind = "" if all(stage.certainty == EXACT for stage in stages) else "up to "
    if settings.max_rows is not None and rows > settings.max_rows:
        return f"it asks about {kind}{rows:,} rows, and max_rows is {settings.max_rows:,}"
    tokens = sum(stage.computed_tokens or 0 for stage in stages)
    if settings.max_tokens is not None and tokens > settings.max_tokens:
        return f"it computes {kind}{tokens:,} prompt tokens, and max_tokens is {settings.max_tokens:,}"
    output = tokens + sum(stage.max_output_tokens or 0 for stage in stages)
    if settings.max_tokens is not None and output > settings.max_tokens:
        return (
            f"with the longest answers it takes {kind}{output:,} tokens, and max_tokens is {settings.max_tokens:,}; "
            "then it stops on the way"
        )
    return None
