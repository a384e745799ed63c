"""A statement, or a DataFrame's call, while Spark runs it: its budget, its progress, and how it is stopped."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from llmsql.budget import KEPT, Budget
from llmsql.errors import BudgetError, LlmsqlError, ModelError
from llmsql.functions import Call
from llmsql.interruption import InterruptError
from llmsql.planner.scratch_names import fresh_name
from llmsql.progress import ProgressBars
from llmsql.settings import Settings
from llmsql.spark.counters import Attempt, Counters, summed
from llmsql.spark.desk import Account, desk_of
from llmsql.spark.reports import Allowance, known_error
from llmsql.spark.requirements import is_connect
from llmsql.spark.worker_faults import place_and_advice
from llmsql.statistics import QueryStatistics, StageStatistics

WORKER_ERROR = re.compile(r"llmsql\.(?:errors|interruption)\.(\w+): (.*)")
PYTHON_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", re.MULTILINE)
JVM_ERROR = re.compile(r"(?:\w+\.)+\w+(?:Error|Exception|Failure)\b")

LOG = logging.getLogger(__name__)


class Running:
    """What runs now. It is used as a context, in which Spark's jobs carry its tag.

    Args:
        spark: where it runs.
        settings: its budget, and whether progress is shown.
        statistics: its counters, which are kept up to date.

    Raises (at the end of the context):
        BudgetError, RowError: what ended it; InterruptError: `interrupt` did; KeyboardInterrupt: Ctrl-C did.
    """

    def __init__(self, spark: SparkSession, settings: Settings, statistics: QueryStatistics):
        self.statistics = statistics
        self.bars = ProgressBars(settings.progress)
        self._session = spark
        self._name = fresh_name("statement")
        self._account = Account(Budget.of(settings), self)
        if is_connect(spark):  # nobody reports
            self._desk, tags = None, (spark.addTag, spark.removeTag, spark.interruptTag)
        else:
            context = spark.sparkContext
            self._desk, tags = desk_of(context), (context.addJobTag, context.removeJobTag, context.cancelJobsWithTag)
        self._add_tag, self._remove_tag, self._cancel_tag = tags
        self._stage: _LiveStage | None = None
        self._cancelled = False
        self._call = Call("llm", None)  # whose tasks run
        self._timer: threading.Timer | None = None

    @property
    def budget(self) -> Budget:
        """What the statement may cost, and has cost."""
        return self._account.budget

    @property
    def problem(self) -> LlmsqlError | None:
        """Why it was stopped, if it was."""
        return self._account.problem

    @property
    def allowance(self) -> Allowance:
        """What its tasks may cost from now on."""
        budget = self.budget
        line = None if self._desk is None else self._desk.line(self._name)
        seconds = None
        if budget.max_seconds is not None:
            seconds = max(budget.max_seconds - (time.monotonic() - budget.started), 0.0)
        rows = None if budget.max_rows is None else max(budget.max_rows - budget.rows, 0)
        tokens = None if budget.max_tokens is None else max(budget.max_tokens - budget.tokens, 0)
        return Allowance(line, rows, tokens, seconds)

    def __enter__(self) -> Running:
        _now.setdefault(self._session, []).append(self)
        if self._desk is not None:
            self._desk.open(self._name, self._account)
        self._add_tag(self._name)
        if self.budget.max_seconds is not None:
            self._timer = threading.Timer(self.budget.max_seconds, self._out_of_time)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(problem, KeyboardInterrupt):
            self._account.stop(InterruptError("the statement was interrupted"))
        if problem is not None:
            self._cancel_jobs()
        with contextlib.suppress(PySparkException):
            self._remove_tag(self._name)
        if self._desk is not None:
            self._desk.forget(self._name)
        running = _now.get(self._session, [])
        if self in running:
            running.remove(self)
        self.bars.close()
        if isinstance(problem, KeyboardInterrupt):
            raise KeyboardInterrupt(self._interrupted()) from problem
        if problem is not None and self.problem is not None and problem is not self.problem:
            raise self._shown(self.problem) from problem

    def check(self) -> None:
        """Between two steps.

        Raises:
            LlmsqlError: it is to stop.
        """
        if self.problem is not None:
            raise self.problem

    def stop(self, problem: LlmsqlError) -> None:
        """End it: its tasks hear it with their next report, and Spark ends those that do not."""
        LOG.info("stopped by %s", type(problem).__name__)
        self._account.stop(problem)
        self._cancel_jobs()

    @contextlib.contextmanager
    def asking(self, call: str, name: str, total: int, statistics: StageStatistics) -> Iterator[_LiveStage]:
        """While tasks ask; `total` distinct rows wait for an answer.

        Args:
            call: the call as the user wrote it.
            name: of the stage, under which its tasks report.
            total: rows.
            statistics: of the call.

        Raises:
            ModelError: Spark could not run the tasks.
        """
        self._call = Call(call.split("(", 1)[0], None)
        with self.bars.stage(name, call, total, statistics) as advance:
            stage = self._stage = _LiveStage(name, total, statistics, advance)
            try:
                with task_errors(call):
                    yield stage
            finally:
                self._stage = None
                stage.settle()

    def counted(self, stage: str, attempt: Attempt, part: StageStatistics, done: int) -> None:
        """See `desk.Listener`."""
        live = self._stage
        if live is not None and live.name == stage:
            live.report(attempt, part, done)

    def failed(self, problem: LlmsqlError) -> None:
        """See `desk.Listener`."""
        if not self._cancelled:  # every task will say so
            self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        self._cancelled = True
        with contextlib.suppress(Exception):  # the application may have ended
            self._cancel_tag(self._name)

    def _out_of_time(self) -> None:
        try:
            self.budget.check(self._call)
        except BudgetError as problem:
            self.stop(problem)

    def _shown(self, problem: LlmsqlError) -> LlmsqlError:
        return InterruptError(self._interrupted()) if isinstance(problem, InterruptError) else problem

    def _interrupted(self) -> str:
        stages = self.statistics.stages
        done = ", ".join(f"{one.asked + one.cached:,} of {one.distinct:,} for {one.call}" for one in stages)
        rows = sum(one.asked + one.cached for one in stages)
        return f"interrupted after {rows:,} rows{' (' + done + ')' if done else ''}; {KEPT}"


class _LiveStage:
    """A stage that tasks work on: its counters are those of the reports so far, and at the end those of the tasks."""

    def __init__(self, name: str, total: int, statistics: StageStatistics, advance: Callable[[int], None]):
        self.name = name
        self._total = total
        self._statistics = statistics
        self._advance = advance
        self._before = _copy(statistics)
        self._reported: dict[Attempt, StageStatistics] = {}
        self._done: dict[tuple[int, int], int] = {}
        self._shown = 0
        self._lock = threading.Lock()
        self.counters: Counters = {}

    def report(self, attempt: Attempt, part: StageStatistics, done: int) -> None:
        """What a task has done so far."""
        with self._lock:
            self._reported[attempt] = part
            place = (attempt.stage, attempt.partition)
            self._done[place] = max(done, self._done.get(place, 0))
            self._show(self._reported)
            shown = min(sum(self._done.values()), self._total)
            self._advance(max(shown - self._shown, 0))
            self._shown = max(shown, self._shown)

    def settle(self) -> None:
        """Count what the tasks that ended well have sent Spark, and of others what they reported last."""
        with self._lock:
            finished = {attempt: part for (_, attempt), part in self.counters.items()}
            self._show({**self._reported, **finished})
            self._advance(max(self._total - self._shown, 0) if finished else 0)

    def _show(self, parts: dict[Attempt, StageStatistics]) -> None:
        call = Call("llm", None)
        total = summed({(call, attempt): part for attempt, part in parts.items()}).get(call, StageStatistics())
        total.rows = total.distinct = 0  # known already
        fresh = _copy(self._before)
        fresh.add(total)
        fresh.started = self._before.started + sum(part.started for part in parts.values())
        for name, value in vars(fresh).items():
            if name not in ("call", "place", "watchers"):
                setattr(self._statistics, name, value)


_now: weakref.WeakKeyDictionary[SparkSession, list[Running]] = weakref.WeakKeyDictionary()


def interrupt(spark: SparkSession) -> int:
    """Stop what runs on a session, also in other threads; how many statements that were."""
    running = list(_now.get(spark, []))
    for one in running:
        one.stop(InterruptError("the statement was interrupted"))
    return len(running)


@contextlib.contextmanager
def task_errors(call: str | None = None) -> Iterator[None]:
    """What Spark says of tasks that failed, as the error of ours that one raised.

    Args:
        call: whose tasks they are; then other failures become a `ModelError` that names it.
    """
    try:
        yield
    except Exception as problem:
        if not isinstance(problem, PySparkException) and type(problem).__module__.split(".")[0] != "py4j":
            raise
        text = str(problem)
        found = WORKER_ERROR.findall(text)
        if found:
            raise known_error(*found[-1]) from problem
        if call is None:
            raise
        raise ModelError(
            f"{call}: Spark could not run the tasks that ask: {_reason(text).rstrip('.')}{place_and_advice(text)}"
        ) from problem


def _reason(text: str) -> str:
    """The line of a trace that says most."""
    found = PYTHON_ERROR.findall(text)
    if found:
        return str(found[-1])
    lines = [line.strip(" \t:") for line in text.splitlines() if line.strip() and not line.strip().startswith("at ")]
    telling = [line for line in lines if JVM_ERROR.search(line) or "Job aborted" in line or "failure" in line]
    return (telling or lines or ["it says nothing"])[0][:500]


def _copy(statistics: StageStatistics) -> StageStatistics:
    copy = StageStatistics(call=statistics.call, place=statistics.place)
    copy.add(statistics)
    copy.predicted_hit_rate = statistics.predicted_hit_rate
    copy.started = statistics.started
    return copy
