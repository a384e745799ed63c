"""What a session leaves on its connection."""

from __future__ import annotations

from typing import Any


def scratch_relations(session: Any) -> list[str]:
    """The names of the tables and views that plans made, and that are still there."""
    session.execute("SELECT 1").fetchall()  # with the next statement goes what nobody can read any more
    rows = session.execute(
        "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
    ).fetchall()
    return sorted(name for (name,) in rows if "llmsql" in name)
