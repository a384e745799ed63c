"""What the planner and DuckDB cost beside the model: a fake model answers at once.

    python benchmarks/planning.py            # about two minutes
    python benchmarks/planning.py --quick    # the same steps, small

Many rows with few distinct arguments, a second run out of the result cache, and the planning of wide joins. Seconds are
wall time; planning is CPU milliseconds, the best of ten, nothing is run. Memory is what the process has grown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import llmsql
from llmsql.testing import FakeModel

STATEMENTS = {
    "SELECT list": "SELECT llm_filter('Is it?', d) FROM t",
    "WHERE": "SELECT count(*) FROM t WHERE llm_filter('Is it?', d)",
    "GROUP BY": "SELECT llm_classify('What?', ['a', 'b'], d) AS k, count(*) FROM t GROUP BY k",
    "ORDER BY": "SELECT id FROM t ORDER BY llm('Say', d), id LIMIT 10",
    "join": "SELECT count(*) FROM t JOIN u USING (d) WHERE llm_filter('Is it?', d, u.name)",
    "SELECT and WHERE": "SELECT sum(id), llm('Say', d) AS s FROM t WHERE llm_filter('Is it?', d) GROUP BY s",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows: shows that everything runs")
    options = parser.parse_args(arguments)
    rows, distinct, cached = (1_000, 50, 200) if options.quick else (1_000_000, 1_000, 100_000)
    many_rows(rows, distinct)
    from_the_cache(cached)
    planning()


def many_rows(rows: int, distinct: int) -> None:
    """Each statement over `rows` rows with `distinct` distinct arguments."""
    print(f"{rows:,} rows, {distinct:,} distinct arguments\n")
    print("| statement | rows asked | seconds | MiB more |\n| --- | ---: | ---: | ---: |")
    for name, sql in STATEMENTS.items():
        with llmsql.connect(model=FakeModel(_answer), cache=False) as con:
            con.execute(f"CREATE TABLE t AS SELECT i AS id, 'text ' || i % {distinct} AS d FROM range({rows}) r(i)")
            con.execute(f"CREATE TABLE u AS SELECT 'text ' || i AS d, 'name ' || i AS name FROM range({distinct}) r(i)")
            con.sql("SELECT llm_filter('Is it?', 'warm')").fetchall()
            before, started = _resident(), time.perf_counter()
            con.sql(sql).fetchall()
            seconds = time.perf_counter() - started
            print(
                f"| {name} | {con.last_query.model_calls:,} | {seconds:.2f} | {_resident() - before:.0f} |", flush=True
            )


def from_the_cache(rows: int) -> None:
    """All rows distinct: the first run keeps its answers, the second one reads them."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n{rows:,} distinct rows, result cache on\n\n| run | rows asked | seconds |\n| --- | ---: | ---: |")
        for run in ("first", "second"):
            with llmsql.connect(model=FakeModel(_answer), cache=str(Path(folder) / "cache.db")) as con:
                con.execute(f"CREATE TABLE t AS SELECT 'text ' || i AS d FROM range({rows}) r(i)")
                started = time.perf_counter()
                con.sql("SELECT count(*) FROM t WHERE llm_filter('Is it?', d)").fetchall()
                seconds = time.perf_counter() - started
                print(f"| {run} | {con.last_query.model_calls:,} | {seconds:.2f} |", flush=True)


def planning(tables: int = 10) -> None:
    """Planning alone, for one table and for a join of `tables`."""
    print("\n| planning | CPU ms |\n| --- | ---: |")
    joined = " ".join(f"JOIN t{number} USING (k)" for number in range(1, tables))
    statements = {
        "one table": "SELECT llm_filter('Is it?', x0) FROM t0 WHERE y0 > 3",
        f"{tables} tables": f"SELECT x1, x2 FROM t0 {joined} WHERE llm_filter('Is it?', x0, x9) AND y3 > 3",
        f"{tables} tables, two filters, CASE, LIMIT": f"SELECT CASE WHEN y1 > 2 THEN llm('Say', x2) ELSE x3 END "
        f"FROM t0 {joined} WHERE llm_filter('Is it?', x0) AND llm_filter('Was it?', x9) AND y3 > 3 LIMIT 5",
    }
    with llmsql.connect(model=FakeModel(_answer), cache=False) as con:
        for number in range(tables):
            con.execute(f"CREATE TABLE t{number} (k INTEGER, x{number} VARCHAR, y{number} INTEGER)")
        for name, sql in statements.items():
            best = min(_cpu_seconds(con, sql) for _ in range(10))
            print(f"| {name} | {1e3 * best:.1f} |", flush=True)


def _cpu_seconds(con: llmsql.Session, sql: str) -> float:
    started = time.process_time()
    con.explain(sql)
    return time.process_time() - started


def _answer(prompt: str, fields: dict[str, object], options: dict[str, object]) -> str:
    return "a" if "What" in prompt else "Yes"


def _resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
