"""TPC-H at scale 0.01 with a predicate and a projection of the model in each query.

Planned = plain DuckDB with the same functions as UDFs, and the model is asked about no more than the distinct arguments
of the rows that survive the plain predicates, which other queries count (`calls`: so many; `at most` and `and`: their
sum is an upper bound). The tables are our own: TPC-H's schema and enough of its values for rows in every result.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import duckdb
import pytest

import llmsql
from llmsql.testing import FakeModel

FOLDER = Path(__file__).parent / "fixtures" / "tpch"
QUERIES = {
    notes["name"]: (notes, "\n".join(line for line in block.splitlines() if not line.startswith("--")).rstrip(";"))
    for block in re.split(r"\n\s*\n", (FOLDER / "queries.sql").read_text(encoding="utf-8").strip())
    if (notes := dict(re.findall(r"^-- ([\w ]+?): (.*)$", block, re.MULTILINE)))
}


def answer(prompt, fields, options):
    code = zlib.crc32(repr((prompt, sorted(map(str, fields.values())))).encode())
    if options["function"] == "llm_filter":
        return "Yes" if code % 3 else "No"
    return options["choices"][code % len(options["choices"])] if "choices" in options else f"{prompt} {code % 97}"


@pytest.fixture(scope="module")
def connections():
    with duckdb.connect() as plain, llmsql.connect(model=FakeModel(answer), cache=False) as planned:
        registration = llmsql.register(plain, model=FakeModel(answer), cache=False)
        for connection in (plain, planned):
            connection.execute((FOLDER / "setup.sql").read_text(encoding="utf-8"))
        yield plain, planned
        registration.remove()


def test_all_22_queries_are_there():
    assert list(QUERIES) == [f"q{number}" for number in range(1, 23)]


@pytest.mark.parametrize("name", QUERIES)
def test_tpch(connections, name):
    plain, planned = connections
    notes, sql = QUERIES[name]
    found, wanted = planned.sql(sql).fetchall(), plain.sql(sql).fetchall()
    assert any(value is not None for row in wanted for value in row)
    assert _rounded(found) == _rounded(wanted)
    asked = planned.last_query.model_calls
    assert asked > 0
    if "calls" in notes:
        assert asked == plain.sql(notes["calls"]).fetchall()[0][0]
    else:
        bounds = [notes[key] for key in ("at most", "and") if key in notes]
        assert asked <= sum(plain.sql(bound).fetchall()[0][0] for bound in bounds)


def _rounded(rows: list[tuple]) -> list[tuple]:
    """The rows in order; sums of floating-point numbers depend on their order in the last digits."""
    return [tuple(float(f"{value:.9g}") if isinstance(value, float) else value for value in row) for row in rows]
