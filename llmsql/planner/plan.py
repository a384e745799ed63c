"""The plan: what runs before the final statement, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmsql.functions import Call
from llmsql.planner.scratch_names import without_prefixes

# The number of a row in its table: DuckDB's own, and in Spark one that scratch tables get.
ROW_NUMBER = "rowid"


@dataclass(frozen=True)
class Stage:
    """One LLM call over its distinct argument tuples.

    `input_sql` yields the columns named in `columns` (the prompt first when it is not constant) and a count `n` of the
    rows behind each tuple. The answers become a relation `name` with columns `keys` (equal to `columns` by position)
    and `value`. `inferred`: the type of the answers, and what in the statement says so, where the call does not.
    """

    name: str
    call: Call
    call_sql: str
    fields: tuple[str, ...]
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    value: str
    input_sql: str
    place: str
    inferred: str | None = None

    @property
    def has_prompt_column(self) -> bool:
        """Whether the first column is the prompt of each row."""
        return self.call.prompt is None


@dataclass(frozen=True)
class Materialise:
    """A part of the statement that is computed once, before the stages that read it."""

    name: str
    columns: tuple[str, ...] | None
    sql: str
    reason: str


@dataclass(frozen=True)
class Filter:
    """One predicate of WHERE that asks the model: its stages, and the rows of a batch for which it holds.

    `sql` is the predicate as the user wrote it. The stages and `passing_sql` read the batch of the step.
    """

    sql: str
    stages: tuple[Stage, ...]
    passing_sql: str


@dataclass(frozen=True)
class Filters:
    """The predicates of one WHERE that ask the model, in an order that is chosen as they run.

    `candidates_sql` yields what they choose from into the table `name` with the columns named in `columns`: without
    `enough`, distinct tuples and a count `n` of the rows behind each; else rows, in the order in which they are taken
    until so many passed. Batches with the columns `needed` and `n` are put in the table `batch`.
    `choose` is off where the order is the one written.
    """

    name: str
    batch: str
    columns: tuple[str, ...]
    needed: tuple[str, ...]
    candidates_sql: str
    filters: tuple[Filter, ...]
    choose: bool
    enough: int | None


@dataclass(frozen=True)
class InPlace:
    """A call that stays in the statement as a UDF, and why it could not be staged."""

    call_sql: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they run, then `final_sql`, which holds no staged call any more.

    `is_query`: the final statement can be selected from; `returns_rows`: it writes, and has a RETURNING clause.
    """

    steps: tuple[Stage | Materialise | Filters, ...]
    final_sql: str
    in_place: tuple[InPlace, ...]
    is_query: bool
    returns_rows: bool = False

    @property
    def stages(self) -> list[Stage]:
        """The stages of all steps."""
        found: list[Stage] = []
        for step in self.steps:
            if isinstance(step, Stage):
                found.append(step)
            elif isinstance(step, Filters):
                found += [stage for one in step.filters for stage in one.stages]
        return found

    def explain(self, notes: Mapping[str, str] | None = None) -> str:
        """The plan as text; `notes` has something to add to stages, by name."""
        notes = notes or {}
        lines = []
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Stage):
                lines += _explain_stage(f"{number}. ", step, notes)
            elif isinstance(step, Filters):
                lines += _explain_filters(f"{number}. ", step, notes)
            else:
                lines.append(f"{number}. materialise once ({step.reason})")
                lines.append(f"     {step.sql}")
        for left in self.in_place:
            lines.append(f"-  in place, chunk by chunk: {left.call_sql}")
            lines.append(f"     because {left.reason}")
        lines.append(f"{len(self.steps) + 1}. {self.final_sql}")
        return without_prefixes("\n".join(lines))


def _explain_stage(head: str, stage: Stage, notes: Mapping[str, str]) -> list[str]:
    space = " " * len(head)
    note = notes.get(stage.name)
    return [
        f"{head}ask {stage.call_sql}",
        f"{space}  for {stage.place}; fields: {', '.join(stage.fields)}",
        *([f"{space}  answer: {stage.inferred}"] if stage.inferred else []),
        f"{space}  input: {stage.input_sql}",
        *([] if note is None else [f"{space}  {note}"]),
    ]


def _explain_filters(head: str, step: Filters, notes: Mapping[str, str]) -> list[str]:
    title = "filter in batches"
    if len(step.filters) > 1:
        title += (
            ", in the order of cost per row / share of rows removed, which is measured on the way"
            if step.choose
            else ", in the order written"
        )
    if step.enough is not None:
        title += f", until {step.enough:,} rows pass"
    lines = [f"{head}{title}", f"     candidates: {step.candidates_sql}"]
    for one in step.filters:
        lines.append(f"   - {one.sql}")
        for stage in one.stages:
            lines += _explain_stage("     ", stage, notes)
    return lines
