"""One SQL query over real reviews, with prefix sharing and reordering on and off: `python benchmarks/query.py`.

Reads products.parquet from $LLMSQL_DATA (default: ../shared/data beside the project). Prints a Markdown table with the
ratio, and how well the demo model's answers agree with the stars that the reviewers gave.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import llmsql

QUERY = """
SELECT llm_filter('Is the review positive?', product_title, description, text) AS positive,
       avg(rating) AS mean_rating, count(*) AS reviews
FROM reviews GROUP BY positive ORDER BY positive
"""
AGREEMENT = """
SELECT avg((positive = (rating >= 4))::INTEGER) AS agreement,
       avg(CASE WHEN rating >= 4 THEN positive::INTEGER END) AS positive_of_4_and_5_stars,
       avg(CASE WHEN rating <= 2 THEN (NOT positive)::INTEGER END) AS negative_of_1_and_2_stars
FROM (SELECT rating, llm_filter('Is the review positive?', product_title, description, text) AS positive FROM reviews)
"""
SWITCHES = {"on": {}, "off": {"reorder": False, "prefix_sharing": False, "cascade": False}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="only this many rows, chosen by hash")
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    folder = Path(os.environ.get("LLMSQL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    source = folder / "products.parquet"
    if not source.is_file():
        print(f"no {source}: set LLMSQL_DATA to the folder with the benchmark tables", file=sys.stderr)
        return 0
    shuffled = f"SELECT * FROM '{source}' ORDER BY hash(id) LIMIT {options.rows or 10**9}"
    seconds: dict[str, float] = {}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| sharing and reordering | rows | distinct | prompt tokens | computed | hit rate | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, settings in SWITCHES.items():
        with llmsql.connect(model=options.model, cache=False, **settings) as con:
            con.execute(f"CREATE TABLE reviews AS {shuffled}")
            con.sql("SELECT llm_filter('Ready?', 'yes')")  # loads the model before the clock starts
            started = time.perf_counter()
            rows = con.sql(QUERY).fetchall()
            seconds[name] = time.perf_counter() - started
            stage = con.last_query.stages[0]
            figures = (stage.rows, stage.distinct, stage.prompt_tokens, stage.computed_tokens)
            print(f"| {name} | {' | '.join(f'{n:,}' for n in figures)} | {stage.hit_rate:.1%} | {seconds[name]:.1f} |")
            if name == "on":
                agreement = con.sql(AGREEMENT).fetchall()[0]
    print(f"\nratio: {seconds['off'] / seconds['on']:.2f}\n")
    for positive, mean, count in rows:
        print(f"positive = {positive}: {count:,} reviews, {mean:.2f} stars on average")
    print(
        "agreement with 4 and 5 stars against the rest: {:.1%} of all, {:.1%} of those, {:.1%} of 1 and 2".format(
            *agreement
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
