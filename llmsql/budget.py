"""Budgets: how many rows, tokens and seconds a statement may cost. They stop it before the cost is paid, or during."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from llmsql.errors import BudgetError
from llmsql.estimate import Estimate
from llmsql.functions import Call
from llmsql.model import Answer, Measure, Model, answering, measure
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

KEPT = "answers that were finished are in the result cache, if there is one"

LOG = logging.getLogger(__name__)


@dataclass
class Budget:
    """What one statement may cost, and what it has cost; None is no limit.

    max_rows: rows that the model is asked about. max_tokens: prompt tokens that are computed, and output tokens.
    max_seconds: since the budget was made.
    """

    max_rows: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    rows: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """The budget of one statement under these settings."""
        return cls(settings.max_rows, settings.max_tokens, settings.max_seconds)

    def take_rows(self, call: Call, rows: int) -> None:
        """Before rows are asked.

        Raises:
            BudgetError: they are more than are left.
        """
        self.rows += rows
        if self.max_rows is not None and self.rows > self.max_rows:
            raise BudgetError(
                f"{call.function}: the statement needs answers for {self.rows:,} rows, and max_rows is "
                f"{self.max_rows:,}; nothing was asked about the last {rows:,} ({KEPT})"
            )

    def expect_tokens(self, call: Call, estimate: Estimate) -> None:
        """Before prompts are run.

        Raises:
            BudgetError: they are estimated at more than is left.
        """
        wanted = self.tokens + estimate.computed_tokens
        if self.max_tokens is not None and wanted > self.max_tokens:
            raise BudgetError(
                f"{call.function}: {estimate.rows:,} prompts have {estimate.prompt_tokens:,} tokens, of which about "
                f"{estimate.computed_tokens:,} must be computed; with those before that is {wanted:,}, and max_tokens "
                f"is {self.max_tokens:,}; they were not run ({KEPT})"
            )

    def check(self, call: Call) -> None:
        """While rows run.

        Raises:
            BudgetError: tokens or seconds are used up.
        """
        if self.max_tokens is not None and self.tokens > self.max_tokens:
            raise BudgetError(
                f"{call.function}: stopped after {self.tokens:,} tokens, max_tokens is {self.max_tokens:,} ({KEPT})"
            )
        seconds = time.monotonic() - self.started
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise BudgetError(
                f"{call.function}: stopped after {seconds:.1f} seconds, max_seconds is {self.max_seconds:g} ({KEPT})"
            )


class BudgetedModel:
    """A model that is asked as long as there is budget."""

    def __init__(self, model: Model, budget: Budget):
        self.model = model
        self.budget = budget

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """The model's answers.

        Raises:
            BudgetError: a limit is reached.
        """
        budget = self.budget
        LOG.debug("budget before %d rows: %d rows and %d tokens used", fields.num_rows, budget.rows, budget.tokens)
        budget.check(call)
        budget.take_rows(call, fields.num_rows)
        estimate = getattr(self.model, "estimate", None)
        if budget.max_tokens is not None and estimate is not None:
            budget.expect_tokens(call, estimate(call, fields, settings))
        counted = statistics.computed_tokens + statistics.output_tokens

        def count() -> None:
            nonlocal counted
            now = statistics.computed_tokens + statistics.output_tokens
            budget.tokens += now - counted
            counted = now

        def watch() -> None:
            count()
            budget.check(call)

        statistics.watchers.append(watch)
        try:
            with answering(self.model, call, fields, settings, statistics) as answers:
                for answer in answers:
                    yield answer
                    watch()
        finally:
            statistics.watchers.remove(watch)
            count()

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """As the model measures."""
        return measure(self.model, call, name, items, settings)

    def close(self) -> None:
        """Close the model."""
        self.model.close()
