"""The plan of every fixture, stages and final SQL, as it is written in `fixtures/planner/plans`.

A change of the planner shows here as a difference of plans. When it is meant, run this file with LLMSQL_WRITE_PLANS=1,
and read what `git diff` says. Another major version of DuckDB may write types and names otherwise.
"""

from __future__ import annotations

import os
import re

import duckdb
import pytest
from planner_fixtures import FIXTURES, FOLDER, filled_session

PLANS = FOLDER / "plans"
STEMS = sorted({fixture.name.split(":")[0] for fixture in FIXTURES})


@pytest.fixture(scope="module")
def session():
    with filled_session() as found:
        yield found


@pytest.mark.skipif(duckdb.__version__ < "2", reason="the plans are those of DuckDB 2")
@pytest.mark.parametrize("stem", STEMS)
def test_plans_are_as_written(session, stem):
    texts = []
    for fixture in FIXTURES:
        if fixture.name.startswith(f"{stem}:"):
            if fixture.first is not None:
                session.execute(fixture.first)
            texts.append(f"-- {fixture.name}\n{renumbered(session.explain(fixture.sql))}\n")
    found, path = "\n".join(texts), PLANS / f"{stem}.txt"
    if os.environ.get("LLMSQL_WRITE_PLANS"):
        PLANS.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), "see the docstring of this file"


def renumbered(plan: str) -> str:
    """The plan with scratch names numbered from 1 on; a session counts on from plan to plan."""
    numbers: dict[str, str] = {}
    plan = re.sub(r"(?i)__llmsql_session_\d+_", "in_place_", plan)
    return re.sub(
        r"\b(answers|candidates|rows|source|groups|windows|pairs|met|choices|distinct|asked|found)_(\d+)",
        lambda match: f"{match[1]}_{numbers.setdefault(match[2], str(len(numbers) + 1))}",
        plan,
    )
