"""Faults of DuckDB itself that random statements meet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import llmsql

# DuckDB 2.0.0 loses rows of some statements with joins, whoever wrote them; with these off it does not.
SUSPECTED = "filter_pushdown,join_order"


@contextlib.contextmanager
def without_suspects(sessions: Iterable[llmsql.Session]) -> Iterator[None]:
    """Statements run without DuckDB's suspected optimizers in these sessions."""
    try:
        for session in sessions:
            session.execute(f"SET disabled_optimizers = '{SUSPECTED}'")
        yield
    finally:
        for session in sessions:
            session.execute("RESET disabled_optimizers")
