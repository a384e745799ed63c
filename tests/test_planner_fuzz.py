"""Random statements: planned = left in place, as multisets, and never more model calls than distinct arguments."""

from __future__ import annotations

import random
import zlib

import pytest

import llmsql
from llmsql import filtering
from llmsql.testing import FakeModel

SETUP = """
CREATE TABLE a AS SELECT range AS id, range % 5 AS k, CASE WHEN range % 7 = 0 THEN NULL ELSE 'a' || range % 6 END AS s,
    (range * 7) % 11 AS n FROM range(40);
CREATE TABLE b AS SELECT range AS id, range % 4 AS k, CASE WHEN range % 5 = 0 THEN NULL ELSE 'b' || range % 3 END AS s,
    (range * 3) % 13 AS n FROM range(25);
CREATE VIEW v AS SELECT * FROM a WHERE n > 2;
"""


def answer(prompt, fields, options):
    code = zlib.crc32(repr((prompt, sorted(fields.items(), key=str))).encode())
    if options["function"] == "llm_filter":
        return "Yes" if code % 3 else "No"
    return options["choices"][code % len(options["choices"])] if "choices" in options else f"{prompt}{code % 50}"


class RecordingModel(FakeModel):
    """Remembers what it was asked."""

    def __init__(self):
        super().__init__(answer)
        self.asked = []

    def answer(self, call, fields, settings, statistics):
        self.asked += [(call.prompt, call.choices, tuple(row.items())) for row in fields.to_pylist()]
        yield from super().answer(call, fields, settings, statistics)


class Statements:
    """Random SELECTs over the tables of SETUP, from a seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def statement(self) -> str:
        kind = self.random.random()
        if kind < 0.15:
            return f"{self.select(1)} UNION ALL {self.select(1)}"
        if kind < 0.3:
            return f"WITH c AS ({self.rows()}) {self.select(source='c')}"
        if kind < 0.45:
            return self.select(source=f"({self.rows()}) c")
        return self.select()

    def rows(self) -> str:
        """A query with the columns of the tables."""
        where = f" WHERE {self.predicate('a')}" if self.random.random() < 0.5 else ""
        columns = self.random.choice(["*", "id, k, s, n", "id, k, llm('Inner', s) AS s, n"])
        limit = " ORDER BY id LIMIT 20" if self.random.random() < 0.3 else ""
        return f"SELECT {columns} FROM a{where}{limit}"

    def select(self, items: int | None = None, source: str | None = None) -> str:
        source = source or self.random.choice(
            ["a", "a", "b", "v", "a JOIN b ON a.k = b.k", "a LEFT JOIN b USING (id)", "a, b"]
        )
        qualifier = source.split()[-1].strip(")") if source.startswith("(") else source.split()[0].strip(",")
        where = [self.predicate(qualifier) for _ in range(self.random.randrange(4))]
        if source == "a, b":
            where.append("a.id = b.id")
        if self.random.random() < 0.3 and items is None:
            return self.grouped(source, qualifier, where)
        chosen = [self.expression(qualifier) for _ in range(items or self.random.randint(1, 3))]
        text = "SELECT " + ", ".join(f"{item} AS c{number}" for number, item in enumerate(chosen)) + f" FROM {source}"
        text += " WHERE " + " AND ".join(where) if where else ""
        if items is None and self.random.random() < 0.3:
            text = f"SELECT DISTINCT {text.removeprefix('SELECT ')}"
        elif items is None and self.random.random() < 0.4:
            joined = source in ("a, b", "a JOIN b ON a.k = b.k")
            ids = "a.id, b.id" if joined else "id" if "USING" in source else f"{qualifier}.id"
            text += f" ORDER BY {ids} LIMIT {self.random.randint(0, 9)}"
        return text

    def grouped(self, source: str, qualifier: str, where: list[str]) -> str:
        key = self.random.choice(
            [f"llm_filter('Good?', {qualifier}.s)", f"{qualifier}.k", f"llm('Key', {qualifier}.k)"]
        )
        aggregate = self.random.choice(
            [
                "count(*)",
                f"sum({qualifier}.n)",
                f"count(*) FILTER (WHERE llm_filter('F?', {qualifier}.s))",
                "min(" + self.call(qualifier) + ")",
            ]
        )
        text = f"SELECT {key} AS g, {aggregate} AS x"
        if key.endswith(".k"):
            text += f", llm('Of key', {key}) AS y"
        text += f" FROM {source}" + (" WHERE " + " AND ".join(where) if where else "")
        return text + self.random.choice(
            [" GROUP BY g", " GROUP BY ALL", " GROUP BY 1" if "y" not in text[-3:] else " GROUP BY g"]
        )

    def call(self, qualifier: str) -> str:
        columns = self.random.sample(["s", "n", "k"], self.random.randint(1, 2))
        fields = ", ".join(f"{qualifier}.{column}" for column in columns)
        return self.random.choice(
            [f"llm('P', {fields})", f"llm('Q', {fields})", f"llm_classify('C', ['x', 'y', 'z'], {fields})"]
        )

    def expression(self, qualifier: str) -> str:
        call = self.call(qualifier)
        return self.random.choice(
            [
                call,
                call,
                f"{qualifier}.n",
                f"upper({call})",
                f"coalesce({call}, 'none')",
                f"CASE WHEN {qualifier}.n > 4 THEN {call} END",
                f"CASE WHEN {self.plain(qualifier)} THEN {call} "
                f"WHEN {self.plain(qualifier)} THEN {self.call(qualifier)} ELSE {self.call(qualifier)} END",
                f"CASE {qualifier}.k WHEN 1 THEN {call} WHEN 2 THEN 'two' ELSE {self.call(qualifier)} END",
                f"coalesce({qualifier}.s, {call}, {self.call(qualifier)})",
                f"nullif({qualifier}.s, {call})",
                f"{qualifier}.s IN ('a1', {call}, 'b2')",
                self.condition(qualifier, 2),
                f"CASE WHEN {self.condition(qualifier, 2)} THEN {call} END",
            ]
        )

    def plain(self, q: str) -> str:
        """A predicate without a call, NULL at times."""
        return self.random.choice([f"{q}.n > {self.random.randint(0, 9)}", f"{q}.s = 'a{self.random.randint(0, 5)}'"])

    def asking(self, q: str) -> str:
        """A predicate with one call; few different ones, so that they meet."""
        field = self.random.choice(["s", "s", "n", "k"])
        return self.random.choice(
            [f"llm_filter('Good?', {q}.{field})", f"llm_classify('C', ['x', 'y', 'z'], {q}.{field}) = 'x'"]
        )

    def condition(self, q: str, depth: int) -> str:
        """AND, OR and NOT over predicates with and without calls."""
        if depth == 0 or self.random.random() < 0.2:
            return self.asking(q) if self.random.random() < 0.6 else self.plain(q)
        kind = self.random.random()
        if kind < 0.2:
            return f"NOT {self.condition(q, depth - 1)}"
        parts = [self.condition(q, depth - 1) for _ in range(self.random.randint(2, 3))]
        return "(" + (" OR " if kind < 0.6 else " AND ").join(parts) + ")"

    def predicate(self, qualifier: str) -> str:
        q = qualifier
        return self.random.choice(
            [
                f"{q}.n > {self.random.randint(0, 6)}",
                f"{q}.s IS NOT NULL",
                f"length({q}.s) = 2",
                f"llm_filter('Good?', {q}.s)",
                f"NOT llm_filter('Bad?', {q}.s, {q}.k)",
                f"llm_classify('C', ['x', 'y', 'z'], {q}.s) <> 'x'",
                f"(llm_filter('Either?', {q}.s) OR {q}.n = 1)",
                f"{self.call(q)} IS NOT NULL",
                f"{q}.k IN (SELECT k FROM b WHERE n > 3)",
                self.asking(q),
                self.condition(q, 2),
                self.condition(q, 3),
                f"CASE WHEN {self.plain(q)} THEN {self.asking(q)} ELSE {self.plain(q)} END",
            ]
        )


SMALL_STEPS = {"SMALLEST_SAMPLE": 1, "FIRST_ROWS": 3, "FIRST_BATCH": 4, "GROWTH": 2, "FIRST_POOL": 5, "POOL_GROWTH": 2}


@pytest.fixture(scope="module")
def sessions():
    with (
        pytest.MonkeyPatch.context() as patch,
        llmsql.connect(model=RecordingModel(), infer_types=False) as planned,
        llmsql.connect(model=FakeModel(answer), plan=False, infer_types=False) as in_place,
    ):
        for name, value in SMALL_STEPS.items():  # the tables are small, too
            patch.setattr(filtering, name, value)
        planned.execute(SETUP)
        in_place.execute(SETUP)
        yield planned, in_place


def check(sessions, seed):
    planned, in_place = sessions
    sql = Statements(seed).statement()
    seen = planned._models.own.asked
    seen.clear()
    wanted = sorted(in_place.sql(sql).fetchall(), key=repr)
    got = sorted(planned.sql(sql).fetchall(), key=repr)
    assert got == wanted, f"seed {seed}: {sql}\n{planned.last_query.plan}"
    for stage in planned.last_query.stages:
        if stage.place != "in place":
            assert stage.asked <= stage.distinct, sql
    assert len(seen) == len(set(seen)), f"asked twice: {sql}"


@pytest.mark.parametrize("seed", range(60))
def test_random_statements(sessions, seed):
    check(sessions, seed)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_many_random_statements(sessions):
    for seed in range(1000, 3000):
        check(sessions, seed)
