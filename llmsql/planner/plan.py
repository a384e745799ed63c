"""The plan: what runs before the final statement, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmsql.functions import Call

SCRATCH_PREFIX = re.compile(r"__llmsql_[0-9a-f]{8}_(?:answers_\d+_(?=\w))?")


@dataclass(frozen=True)
class Stage:
    """One LLM call over its distinct argument tuples.

    `input_sql` yields the columns named in `columns` (the prompt first when it is not constant) and a count `n` of the
    rows behind each tuple. The answers become a relation `name` with columns `keys` (equal to `columns` by position)
    and `value`.
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
class InPlace:
    """A call that stays in the statement as a UDF, and why it could not be staged."""

    call_sql: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they run, then `final_sql`, which holds no staged call any more.

    `is_query`: the final statement can be selected from; `returns_rows`: it writes, and has a RETURNING clause.
    """

    steps: tuple[Stage | Materialise, ...]
    final_sql: str
    in_place: tuple[InPlace, ...]
    is_query: bool
    returns_rows: bool = False

    def explain(self) -> str:
        """The plan as text."""
        lines = []
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Stage):
                lines.append(f"{number}. ask {step.call_sql}")
                lines.append(f"     for {step.place}; fields: {', '.join(step.fields)}")
                lines.append(f"     input: {step.input_sql}")
            else:
                lines.append(f"{number}. materialise once ({step.reason})")
                lines.append(f"     {step.sql}")
        for left in self.in_place:
            lines.append(f"-  in place, chunk by chunk: {left.call_sql}")
            lines.append(f"     because {left.reason}")
        lines.append(f"{len(self.steps) + 1}. {self.final_sql}")
        return SCRATCH_PREFIX.sub("", "\n".join(lines))
