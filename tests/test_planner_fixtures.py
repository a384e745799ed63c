"""Planned = plain: every statement of `fixtures/planner` answers as DuckDB itself does with the functions as UDFs."""

from __future__ import annotations

import pytest
from planner_fixtures import FIXTURES, filled_connection, filled_session, rows_of
from scratch_relations import scratch_relations


@pytest.fixture(scope="module")
def planned():
    with filled_session() as session:
        yield session


@pytest.fixture(scope="module")
def in_place():
    with filled_session(plan=False) as session:
        yield session


@pytest.fixture(scope="module")
def plain():
    with filled_connection() as connection:
        yield connection


def test_there_are_enough_fixtures():
    assert len(FIXTURES) >= 300
    assert len({fixture.name for fixture in FIXTURES}) == len(FIXTURES)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_planned_equals_plain(fixture, planned, in_place, plain):
    names, types, rows, left = rows_of(planned, fixture)
    statistics = planned.last_query
    assert (types, rows, left) == rows_of(in_place, fixture)[1:]
    if not fixture.session_only:
        plain_names, *wanted = rows_of(plain, fixture)
        assert [types, rows, left] == wanted
        assert [name for name in names if "llm" not in name] == [name for name in plain_names if "llm" not in name]
    assert ("in place, chunk by chunk" in statistics.plan) == fixture.in_place
    if fixture.calls is not None:
        assert statistics.model_calls == plain.sql(fixture.calls).fetchall()[0][0]
    if fixture.at_most is not None:
        assert statistics.model_calls <= plain.sql(fixture.at_most).fetchall()[0][0]


def test_no_scratch_object_is_left(planned):
    assert scratch_relations(planned) == []
