"""The statements of `fixtures/planner`, and the connections on which they run.

A fixture is a statement with comments before it: its name; `calls`, a query that counts the argument tuples which the
model may be asked about; `at most`, the same where how many it is depends on what was measured on the way; `ordered`
when the order of the rows is part of the answer; `in place` when the planner leaves a call to DuckDB; `only: session`
when DuckDB itself cannot bind the statement (then the plain side is the session with planning off). For a statement
that writes, `first` is run before it, and `then` is a query of what it left.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

import llmsql
from llmsql.session import Session
from llmsql.testing import FakeModel

FOLDER = Path(__file__).parent / "fixtures" / "planner"
SETUP = (FOLDER / "setup.sql").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Fixture:
    name: str
    sql: str
    calls: str | None
    at_most: str | None
    ordered: bool
    in_place: bool
    session_only: bool
    first: str | None
    then: str | None


def read_fixtures() -> list[Fixture]:
    found = []
    for path in sorted(FOLDER.glob("*.sql")):
        if path.name == "setup.sql":
            continue
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
            notes = dict(re.findall(r"^-- ([\w ]+?)(?:: (.*))?$", block, re.MULTILINE))
            sql = "\n".join(line for line in block.splitlines() if not line.startswith("--")).rstrip(";")
            found.append(
                Fixture(
                    name=f"{path.stem}: {notes['name']}",
                    sql=sql,
                    calls=notes.get("calls"),
                    at_most=notes.get("at most"),
                    ordered="ordered" in notes,
                    in_place="in place" in notes,
                    session_only=notes.get("only") == "session",
                    first=notes.get("first"),
                    then=notes.get("then"),
                )
            )
    return found


FIXTURES = read_fixtures()


def answer(prompt: str, fields: dict[str, object], options: dict[str, object]) -> str:
    """A pure function of the values, whatever their names and order."""
    code = zlib.crc32(repr((prompt, sorted(map(str, fields.values())))).encode())
    if options["function"] == "llm_filter":
        return "Yes" if code % 3 else "No"
    if "choices" in options:
        return options["choices"][code % len(options["choices"])]  # type: ignore[index]
    return f"{prompt[:9]} {code % 1000}"


@contextmanager
def filled_session(**settings: object) -> Iterator[Session]:
    """A session with the fixtures' tables; types are not inferred, as they are not where the calls are UDFs."""
    with llmsql.connect(model=FakeModel(answer), infer_types=False, **settings) as session:
        session.execute(SETUP)
        yield session


@contextmanager
def filled_connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A plain connection with the fixtures' tables, and the calls as UDFs."""
    with duckdb.connect() as connection:
        registration = llmsql.register(connection, model=FakeModel(answer))
        connection.execute(SETUP)
        yield connection
        registration.remove()


def rows_of(connection, fixture: Fixture) -> tuple[list[str], list[str], list[tuple], list[tuple]]:
    """Names and types of the columns, the rows, and what the statement left."""
    if fixture.first is None:
        relation = connection.sql(fixture.sql)
        names, types, rows = relation.columns, [str(kind) for kind in relation.types], relation.fetchall()
    else:
        connection.execute(fixture.first)
        connection.execute(fixture.sql)
        rows = connection.fetchall()
        shown = connection.description if rows or "RETURNING" in fixture.sql else []
        names, types = ([str(column[place]) for column in shown] for place in (0, 1))
    left = [] if fixture.then is None else sorted(connection.execute(fixture.then).fetchall(), key=repr)
    return names, types, rows if fixture.ordered else sorted(rows, key=repr), left
