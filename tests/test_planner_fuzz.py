"""Random statements: planned = left in place, as multisets, and no argument tuple is asked about twice.

`make fuzz` runs 2,000 of them; LLMSQL_FUZZ_SEED and LLMSQL_FUZZ_STATEMENTS choose others, and more.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import Counter

import duckdb
import pytest
from duckdb_faults import without_suspects
from planner_fuzz import SETUP, Statements

import llmsql
from llmsql import filtering
from llmsql.testing import FakeModel

FIRST_SEED = int(os.environ.get("LLMSQL_FUZZ_SEED", "1000"))
STATEMENTS = int(os.environ.get("LLMSQL_FUZZ_STATEMENTS", "2000"))
SMALL_STEPS = {"SMALLEST_SAMPLE": 1, "FIRST_ROWS": 3, "FIRST_BATCH": 4, "GROWTH": 2, "FIRST_POOL": 5, "POOL_GROWTH": 2}
WRITING = ("UPDATE", "DELETE", "INSERT", "MERGE", "CREATE")


class RecordingModel(FakeModel):
    """Remembers what it was asked."""

    def __init__(self, name):
        super().__init__(self.reply, fingerprint=name.encode())
        self.name = name
        self.asked = []

    def reply(self, prompt, fields, options):
        code = zlib.crc32(repr((self.name, prompt, sorted(fields.items(), key=str))).encode())
        if "choices" in options:
            return options["choices"][code % len(options["choices"])]
        if "return_type" in options or options["function"] == "llm_score":
            return str(code % 10)
        return f"{prompt}{code % 50}"

    def answer(self, call, fields, settings, statistics):
        options = tuple(sorted((name, str(value)) for name, value in call.options().items()))
        types = tuple(map(str, fields.schema.types))
        self.asked += [(call.prompt, options, types, tuple(row.items())) for row in fields.to_pylist()]
        yield from super().answer(call, fields, settings, statistics)


@pytest.fixture(scope="module")
def sessions():
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in SMALL_STEPS.items():  # the tables are small, too
            patch.setattr(filtering, name, value)
        found = []
        for plan in (True, False):
            settings = {"plan": plan, "cache": False, "infer_types": False}
            session = stack.enter_context(llmsql.connect(model=RecordingModel("own"), **settings))
            session.fast = RecordingModel("fast")
            session.add_model("fast", session.fast)
            session.execute(SETUP)
            found.append(session)
        yield tuple(found)


def outcome(session, sql):
    """The rows, and those of the table that it wrote; or the error."""
    writes = sql.startswith(WRITING)
    if writes:
        session.execute("CREATE OR REPLACE TABLE w AS FROM a")
    try:
        rows = session.execute(sql).fetchall()
        statistics = session.last_query
        left = session.execute("FROM w").fetchall() if writes else []
    except (duckdb.Error, llmsql.LlmsqlError) as problem:
        return f"{type(problem).__name__}: {problem}", None
    return (sorted(rows, key=repr), sorted(left, key=repr)), statistics


def check(sessions, seed):
    """What became of the statement of this seed: equal, refused by both, or wrong in DuckDB itself."""
    planned, in_place = sessions
    sql = Statements(seed).statement()
    asked = [model.asked for model in (planned._models.own, planned.fast)]
    for seen in asked:
        seen.clear()
    wanted, _ = outcome(in_place, sql)
    got, statistics = outcome(planned, sql)
    if isinstance(wanted, str):  # DuckDB cannot run it with UDFs; the planner may
        return "refused"
    plan = planned.last_query.plan
    if got != wanted and _equal_without_suspects(sessions, sql):
        return "wrong in DuckDB"
    assert got == wanted, f"seed {seed}: {sql}\n{plan}"
    if "in place, chunk by chunk" in plan:
        return "in place"
    for stage in statistics.stages:
        assert stage.asked <= stage.distinct, f"seed {seed}: {sql}"
    for seen in asked:
        assert len(seen) == len(set(seen)), f"asked twice, seed {seed}: {sql}\n{plan}"
    return "equal"


def _equal_without_suspects(sessions, sql):
    """Whether the same final statement, run without DuckDB's suspected optimizers, gives what it should."""
    with without_suspects(sessions):
        got, wanted = (outcome(session, sql)[0] for session in sessions)
        return got == wanted


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_random_statements(sessions, first):
    for seed in range(first, first + 10):
        check(sessions, seed)


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
def test_many_random_statements(sessions):
    found = Counter(check(sessions, seed) for seed in range(FIRST_SEED, FIRST_SEED + STATEMENTS))
    print(found)
    assert found["refused"] <= 0.1 * STATEMENTS
    assert found["wrong in DuckDB"] <= 0.02 * STATEMENTS
    assert found["equal"] >= 0.5 * STATEMENTS
