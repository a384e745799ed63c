"""Running the predicates of a WHERE that ask the model: which first, for which rows, and how far."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llmsql.answer_tables import AnswerTables, Run
from llmsql.estimate import CHARACTERS_PER_TOKEN, OUTPUT_TOKEN
from llmsql.planner import Filter, Filters, Stage
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics, StageStatistics

SAMPLE = 64  # candidates at most, and one of 16, on which all predicates are tried first
SMALLEST_SAMPLE = 8
FIRST_ROWS = 32  # under a LIMIT: as few as a model still runs well together
FIRST_BATCH, GROWTH = 1024, 8
FIRST_POOL, POOL_GROWTH = 4096, 16  # rows read under a LIMIT, before more are read
PROMPT_TOKENS = 16.0  # of a prompt, beside the row's own

LOG = logging.getLogger(__name__)


@dataclass
class Measured:
    """What is known of a predicate: how many candidates it saw, how many passed, and what a row costs in tokens."""

    filter: Filter
    seen: int = 0
    passed: int = 0
    cost: float = 0.0

    @property
    def selectivity(self) -> float:
        """The share of candidates that pass, drawn towards a half while few were seen."""
        return (self.passed + 1) / (self.seen + 2)

    @property
    def rank(self) -> float:
        """Cost per row over the share of rows removed; the lowest goes first."""
        return self.cost / (1 - self.selectivity)


class FilterRunner:
    """Runs one `Filters` step. Its order has no say in the result: the final statement keeps all predicates.

    Args:
        step: the predicates and their candidates.
        run, run_with_parameters: SQL on the user's connection.
        ask: runs a stage on the batch at hand.
        answers: knows what was asked already.
        scratch: (kind, name) of every relation made is added here.
        settings, statistics: of the session, and of the statement.
    """

    def __init__(
        self,
        step: Filters,
        run: Run,
        run_with_parameters: Callable[[str], object],
        ask: Callable[[Stage], StageStatistics],
        answers: AnswerTables,
        scratch: list[tuple[str, str]],
        settings: Settings,
        statistics: QueryStatistics,
    ):
        self.step = step
        self._run = run
        self._run_with_parameters = run_with_parameters
        self._ask = ask
        self._answers = answers
        self._settings = settings
        self._statistics = statistics
        self._filters = [Measured(one) for one in step.filters]
        self._asked: dict[Stage, StageStatistics] = {}
        self._looked_at = 0
        scratch += [("TABLE", step.name), ("TABLE", step.batch)]

    def run(self) -> None:
        """Ask until every candidate is decided, or enough rows passed."""
        if self.step.enough is None:
            self._all_candidates()
        else:
            self._enough_rows(self.step.enough)
        self._statistics.decisions.append(decision(self._filters, self.step.enough, self._looked_at))
        LOG.debug("filters: %s", self._statistics.decisions[-1])

    def _all_candidates(self) -> None:
        """The candidates come in an order that is random, but the same each time; so the first ones are a sample."""
        order = f" ORDER BY hash({', '.join(self.step.columns)})"
        total = self.fill(f"SELECT * FROM ({self.step.candidates_sql}){order}", (*self.step.columns, "n"))
        if not self.step.choose or not self._settings.deduplicate:
            self._batch(0, max(total, 1))
            return
        sample = min(SAMPLE, total // 16)
        size = max(total, 1)
        if sample >= SMALLEST_SAMPLE:
            self._try_all(sample)
            size = FIRST_BATCH
        start = 0
        while start < max(total, 1):
            self._batch(start, start + size)
            start += size
            size = min(size * GROWTH, self._settings.batch_rows)

    def _enough_rows(self, enough: int) -> None:
        """Rows in order, in growing batches. Reading goes in growing steps too, each from the start: a source has no
        place to go on from, and what was answered is known."""
        if enough == 0:
            self.fill(f"{self.step.candidates_sql} LIMIT 0", self.step.columns)
            self._batch(0, 0)
            return
        cap = max(FIRST_POOL, 64 * enough)
        while True:
            total = self.fill(f"{self.step.candidates_sql} LIMIT {cap}", self.step.columns)
            start = passed = 0
            size = max(FIRST_ROWS, 2 * enough) if self._settings.deduplicate else max(total, 1)
            while start < max(total, 1) and (passed < enough or start == 0):
                passed += self._batch(start, start + size)
                start += size
                wanted = 1.25 * (enough - passed) * start / passed if passed else 2 * size
                size = int(min(2 * size, max(FIRST_ROWS, wanted)))
            self._looked_at = min(start, total)
            if passed >= enough or total < cap:
                return
            cap *= POOL_GROWTH

    def fill(self, sql: str, columns: tuple[str, ...]) -> int:
        """Put the candidates in their table; how many there are."""
        self._run_with_parameters(
            f"CREATE OR REPLACE TEMP TABLE {self.step.name} AS SELECT row_number() OVER () - 1 AS id, * "
            f"FROM ({sql}) found({', '.join(columns)})"
        )
        return int(self._run(f"SELECT count(*) FROM {self.step.name}", {})[0][0])

    def load(self, start: int, stop: int) -> int:
        """Make the candidates from `start` up to `stop` the batch; how many there are."""
        count = "n" if self.step.enough is None else "1 AS n"
        self._run(
            f"CREATE OR REPLACE TEMP TABLE {self.step.batch} AS SELECT {', '.join(self.step.needed)}, {count} "
            f"FROM {self.step.name} WHERE id >= {start} AND id < {stop} ORDER BY id",
            {},
        )
        return int(self._run(f"SELECT count(*) FROM {self.step.batch}", {})[0][0])

    def _try_all(self, sample: int) -> None:
        """Ask every predicate about the first candidates, to see what it costs and removes."""
        for one in self._filters:
            self._apply(one, self.load(0, sample))

    def _batch(self, start: int, stop: int) -> int:
        """Decide these candidates, each predicate only those that the ones before left; how many passed all."""
        rows = self.load(start, stop)
        for one in self._order(rows):
            rows = self._apply(one, rows)
        return rows

    def _apply(self, one: Measured, rows: int) -> int:
        """Ask one predicate about the batch and keep in it the candidates for which it holds; how many these are."""
        for stage in one.filter.stages:
            self._asked[stage] = self._ask(stage)
        self._run_with_parameters(f"CREATE OR REPLACE TEMP TABLE {self.step.batch} AS {one.filter.passing_sql}")
        passed = int(self._run(f"SELECT count(*) FROM {self.step.batch}", {})[0][0])
        one.seen += rows
        one.passed += passed
        return passed

    def _order(self, rows: int) -> list[Measured]:
        """The predicates by rank for the batch at hand, those of equal rank as they were written."""
        measurable = all(stage in self._asked for one in self._filters for stage in one.filter.stages)
        if len(self._filters) < 2 or not self.step.choose or not measurable or rows == 0:
            return self._filters
        for one in self._filters:
            one.cost = sum(self._answers.missing(stage) * self._cost(stage) for stage in one.filter.stages) / rows
        return sorted(self._filters, key=lambda one: one.rank)

    def _cost(self, stage: Stage) -> float:
        return cost_of_one(stage, self._asked[stage], self._settings, lambda: self._answers.mean_length(stage))


def cost_of_one(stage: Stage, counted: StageStatistics, settings: Settings, mean_length: Callable[[], float]) -> float:
    """What one question costs, in tokens of a prompt: as the model counted it, or from the length of the fields."""
    if counted.asked and counted.prompt_tokens:
        return (counted.computed_tokens + OUTPUT_TOKEN * counted.output_tokens) / counted.asked
    output = 1 if stage.call.choices else stage.call.max_tokens or settings.max_output_tokens
    return PROMPT_TOKENS + mean_length() / CHARACTERS_PER_TOKEN + OUTPUT_TOKEN * output


def decision(filters: list[Measured], enough: int | None, looked_at: int) -> str:
    """What was chosen, and why, for the report."""
    lines = []
    if len(filters) > 1:
        chosen = any(one.cost for one in filters)
        ordered = sorted(filters, key=lambda one: one.rank) if chosen else filters
        lines.append("predicates in the order " + ("chosen:" if chosen else "written:"))
        for one in ordered:
            share = one.passed / one.seen if one.seen else 0.0
            measured = f"{one.passed:,} of {one.seen:,} pass ({share:.0%}), {one.cost:.1f} tokens a row"
            lines.append(f"  {one.filter.sql}: {measured}")
    if enough is not None:
        lines.append(f"LIMIT: {looked_at:,} rows looked at for {enough:,}")
    return "\n".join(lines)
