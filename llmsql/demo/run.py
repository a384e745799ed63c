"""The demo: three LLM queries over generated reviews, with the optimisations on and off in the same run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

import llmsql
from llmsql.demo.reviews import reviews_table
from llmsql.session import Session
from llmsql.statistics import QueryStatistics

COST_COLUMNS = (
    "query",
    "sharing",
    "rows",
    "distinct",
    "prompt tokens",
    "computed",
    "hit rate",
    "seconds",
    "faster",
)
OFF = {"deduplicate": False, "reorder": False, "prefix_sharing": False, "cascade": False}


@dataclass(frozen=True)
class DemoQuery:
    """A statement whose column `answer` is compared with the known truth."""

    title: str
    sql: str
    truth: str


QUERIES = (
    DemoQuery(
        "filter",
        "SELECT product_title, review,\n"
        "       llm_filter('Is the review positive?', product_title, description, review) AS answer\n"
        "FROM reviews",
        "is_positive",
    ),
    DemoQuery(
        "classify",
        "SELECT product_title, review,\n"
        "       llm_classify('What is the review about?', ['delivery', 'quality', 'price', 'service', 'packaging',\n"
        "                    'size', 'story', 'acting'], product_title, description, review) AS answer\n"
        "FROM reviews",
        "topic",
    ),
    DemoQuery(
        "free text",
        "SELECT product_title, country,\n"
        "       llm('Which country is it from?', product_title, category, brand, price, country) AS answer\n"
        "FROM reviews",
        "country",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and print answers, accuracy and costs."""
    parser = argparse.ArgumentParser(prog="python -m llmsql.demo", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="reviews to generate (default: 2000)")
    parser.add_argument("--model", default="demo", help="a model folder or hub id (default: the demo model)")
    parser.add_argument("--seed", type=int, default=7, help="which reviews to generate")
    options = parser.parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 120)
    reviews = reviews_table(options.rows, seed=options.seed)
    console.print(f"{reviews.num_rows:,} generated reviews of generated products; model: {options.model}\n")
    costs = Table(title="What it cost, with the optimisations on and off", title_justify="left")
    for name in COST_COLUMNS:
        costs.add_column(name, justify="left" if name in COST_COLUMNS[:2] else "right")
    for query in QUERIES:
        console.rule(f"[bold]{query.title}", align="left")
        console.print(query.sql, highlight=False, markup=False)
        on, seconds_on, answers = _run(query, reviews, options.model, {})
        _show(console, answers)
        console.print(f"right answers: {_accuracy(answers, reviews, query.truth):.1%} of {reviews.num_rows:,}\n")
        off, seconds_off, slow_answers = _run(query, reviews, options.model, OFF)
        same = sum(a == b for a, b in zip(answers["answer"].to_pylist(), slow_answers["answer"].to_pylist()))
        _cost_row(costs, query.title, "on", on, seconds_on, f"{seconds_off / seconds_on:.1f} times")
        _cost_row(costs, f"{same / reviews.num_rows:.1%} equal", "off", off, seconds_off)
        costs.add_section()
    console.print(costs)
    console.print(
        "off: every row asked, in any order, nothing shared between prompts; equal: answers that are the same in both\n"
        "runs. A model may answer otherwise when fields stand in another order; reorder := false pins it."
    )
    return 0


def _run(
    query: DemoQuery, reviews: pa.Table, model: str, settings: dict[str, Any]
) -> tuple[QueryStatistics, float, pa.Table]:
    with llmsql.connect(model=model, cache=False, **settings) as session:
        _load(session)
        session.register("reviews", reviews)
        started = time.perf_counter()
        relation = session.sql(query.sql)
        assert relation is not None, "a query has rows"
        answers = relation.to_arrow_table()
        return session.last_query, time.perf_counter() - started, answers


def _load(session: Session) -> None:
    """Load the model before the clock starts."""
    session.sql("SELECT llm_filter('Ready?', 'yes')")


def _show(console: Console, answers: pa.Table) -> None:
    table = Table()
    for name in answers.column_names:
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=44)
    for row in answers.slice(0, 5).to_pylist():
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)


def _accuracy(answers: pa.Table, reviews: pa.Table, truth: str) -> float:
    pairs = list(zip(answers["answer"].to_pylist(), reviews[truth].to_pylist()))
    return sum(bool(answer == wanted) for answer, wanted in pairs) / max(len(pairs), 1)


def _cost_row(
    costs: Table, title: str, switch: str, statistics: QueryStatistics, seconds: float, faster: str = ""
) -> None:
    stage = statistics.stages[0]
    numbers = (stage.rows, stage.distinct, stage.prompt_tokens, stage.computed_tokens)
    costs.add_row(
        title, switch, *(f"{number:,}" for number in numbers), f"{stage.hit_rate:.1%}", f"{seconds:.1f}", faster
    )
