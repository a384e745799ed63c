"""What a statement would ask and cost, found without a model: all its SQL is run but the final statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from llmsql.answer_tables import Run
from llmsql.estimate import hit_rate
from llmsql.execution import PlanRunner
from llmsql.functions import Call
from llmsql.model import Model
from llmsql.planner import Filters, Materialise, Plan, Stage
from llmsql.planner.loosening import Loosened, loosen
from llmsql.planner.plan import InPlace
from llmsql.settings import Settings
from llmsql.stand_in import StandInModel
from llmsql.statistics import QueryStatistics, StageStatistics, aligned, shortened_call

EXACT, AT_MOST, ABOUT = "exact", "at most", "about"
_LEVELS = (EXACT, AT_MOST, ABOUT)
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
        return max(_LEVELS.index(at_least), inherited, 0 if not found.depends else 1 if found.bounds else 2)

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
        stages = tuple(_forecast(*found) for found in self._forecasts)
        return DryRun(sql, plan.explain(), stages, plan.in_place, _over_budget(stages, settings))


class DryRunner(PlanRunner):
    """Runs the steps of a plan with answers that stand in for those that are not in the result cache.

    Where rows depend on an answer that is not known, all rows are taken that may be meant.

    Args:
        run, read, parameters, model_for, settings, watch: as for `PlanRunner`.
        sample: rows of a batch at most whose tokens are counted; None counts all.
    """

    def __init__(
        self,
        run: Run,
        read: Callable[[str], pa.Table],
        parameters: Mapping[str, Any],
        model_for: Callable[[str | None], Model],
        settings: Settings,
        watch: Callable[[], None],
        sample: int | None = None,
    ):
        stand_ins: dict[str | None, StandInModel] = {}

        def stand_in(name: str | None) -> Model:
            if name not in stand_ins:
                stand_ins[name] = StandInModel(model_for(name), self._note_guess, settings.engine_options(), sample)
            return stand_ins[name]

        quiet = settings.changed(progress=False, on_error="null")
        super().__init__(run, read, parameters, stand_in, quiet, QueryStatistics(), watch)
        self.settings = settings
        self._guessed = False
        self._guesses = Guesses()

    def result(self, sql: str, plan: Plan) -> DryRun:
        """Run all steps.

        Raises:
            CallError, ModelError, QueryError: as when the statement runs.
        """
        self.run_steps(plan)
        return self._guesses.result(sql, plan, self.settings)

    def _materialise(self, step: Materialise) -> None:
        found = self._guesses.loosened(step.sql)
        super()._materialise(replace(step, sql=found.sql))
        self._note_relation(step.name, found, step.columns)

    def _filter(self, step: Filters) -> None:
        """All candidates, each predicate for those that the ones before leave for certain."""
        guesses = self._guesses
        candidates = guesses.loosened(step.candidates_sql)
        runner = self._filter_runner(step)
        columns = step.columns if step.enough is not None else (*step.columns, "n")
        total = runner.fill(candidates.sql, columns)
        runner.load(0, max(total, 1))
        for name in (step.name, step.batch):
            self._note_relation(name, candidates, step.columns)
        for one in step.filters:
            known = guesses.number
            for stage in one.stages:
                self._run_stage(stage, at_least=least_certain(step))
            if guesses.number == known and not guesses.loosened(one.passing_sql).depends:
                self.run_with_parameters(f"CREATE OR REPLACE TEMP TABLE {step.batch} AS {one.passing_sql}")

    def _run_stage(self, stage: Stage, at_least: str = EXACT) -> StageStatistics:
        counted = self._guesses.counted(stage)
        if counted is not None:
            return counted
        found = self._guesses.loosened(stage.input_sql)
        level = self._guesses.level(found, at_least)
        self._guessed = False
        asked = replace(stage, input_sql=found.sql, call=tolerant(stage.call))
        statistics = super()._run_stage(asked)
        statistics.failures.clear()
        # Another stage, whose answers this one shares, may have guessed.
        guessed = self._guessed or self._guesses.has(self._answers.table_of(asked).name)
        self._guesses.note_stage(stage, statistics, level, guessed)
        return statistics

    def _note_relation(self, name: str, found: Loosened, columns: tuple[str, ...] | None) -> None:
        described = lambda: tuple(row[0] for row in self._run(f"DESCRIBE {name}", {}))  # noqa: E731
        self._guesses.note_relation(name, found, described if columns is None else lambda: columns)

    def _note_guess(self) -> None:
        self._guessed = True


def least_certain(step: Filters) -> str:
    """What is known of the rows that predicates see: others may go first, or enough rows come early."""
    return AT_MOST if len(step.filters) > 1 or step.enough is not None else EXACT


def tolerant(call: Call) -> Call:
    """A guess that is no answer must not stop the statement."""
    return call if call.returns_error else replace(call, on_error=None)


def _forecast(stage: Stage, counted: StageStatistics, level: int) -> StageForecast:
    known = counted.prompt_tokens > 0 or not counted.asked
    return StageForecast(
        name=stage.name,
        call=stage.call_sql,
        place=stage.place,
        certainty=_LEVELS[level],
        rows=counted.rows,
        distinct=counted.distinct,
        cached=counted.cached,
        to_run=counted.asked,
        prompt_tokens=counted.prompt_tokens if known else None,
        computed_tokens=counted.computed_tokens if known else None,
        max_output_tokens=counted.output_tokens if known else None,
    )


def _over_budget(stages: tuple[StageForecast, ...], settings: Settings) -> str | None:
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
