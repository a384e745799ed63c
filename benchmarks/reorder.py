"""Hit rates, seconds and memory of every reordering method, on Parquet tables and on synthetic ones.

    python benchmarks/reorder.py ../shared/data/*.parquet --output benchmarks/out

Without paths: the Parquet files of $LLMSQL_DATA or ../shared/data, if there are any. The prefix hit rate is the share
of the prompt bodies that some earlier prompt has as its prefix too, with an unbounded cache, the whole table as one
batch, and the instructions left out.

- "characters": each cell written as `"name": "value", `, JSON-escaped, NULL as "", whatever the method saw; counted on
  the texts of the prompts, with nothing of the optimizer in it.
- "tokens": our own cells by the tokenizer of the demo model (or --tokenizer), ordered by their lengths in tokens as for
  the engine; exact, partly shared cells included.
- "LRU": the same in whole cells with a least-recently-used cache of CACHE_TOKENS tokens, one row after the other. Rows
  as they stand in the table only find what is still there; all other methods come depth-first and lose nothing.
- "CPU s": of `reorder(table)`, encoding included: the least of REPEATS runs, in a process of its own.
- "MiB": what that process held at most beyond what it held with the table read (Linux: resident memory; elsewhere what
  tracemalloc knows of), and how many times the encoded table that is.
- "bound": the whole cells that no order of rows and fields can exceed (see spanning_bound.py), in percent of our own
  cells, and the share of it that `auto` reaches in whole cells. Characters may exceed it by partly shared cells.

Rows are shuffled with a seed, and also taken as they stand in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bar_chart import bar_chart
from child_process import run_apart
from prefixes import shared_prefixes
from spanning_bound import hit_bound
from synthetic_tables import list_tables, tables
from tokenizers import Tokenizer

import llmsql.demo
from llmsql.optimizer import Cells, Ordering, encode, finite_cache_hits, prefix_hits, reorder

METHODS = ("none", "sort", "fixed", "ggr", "tree", "auto")
CACHE_TOKENS = 16_384
REPEATS = 3
BOUND_WORK = 4 * 10**10  # rows squared times columns; a minute or so
# the fields that the published experiments show to the model; other tables are taken whole
COLUMNS = {
    "movies": "reviewcontent reviewtype topcritic movieid movieinfo genres productioncompany",
    "products": "text description parent_asin review_title verified_purchase rating product_title id",
    "bird_posts": "Text PostId PostDate Body",
}
# published code of the authors of arXiv:2403.05821 on the same files: characters in percent, seconds on another day
AUTHORS = {
    "beer": (66.2, 17.9),
    "movies": (86.2, 2.8),
    "products": (76.7, 0.7),
    "bird_posts": (65.1, 1.3),
    "squad_rag5": (19.8, 2.6),
    "ratebeer_wide": (17.3, 49.5),
}


@dataclass(frozen=True)
class Measured:
    """One method on one table; rates in percent."""

    characters: float
    whole_cells: float
    tokens: float
    least_recently_used: float
    seconds: float
    megabytes: float
    times_encoded: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="Parquet files")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--orders", default="shuffled,natural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=Path(llmsql.demo.MODEL_FOLDER) / "tokenizer.json")
    parser.add_argument("--synthetic-rows", type=int, default=4_000, help="rows of the synthetic tables; 0 for none")
    parser.add_argument("--output", type=Path, help="folder for reorder.md and reorder.svg")
    options = parser.parse_args(arguments)
    paths = options.tables or sorted(data_folder().glob("*.parquet"))
    sections, rates = [], {}
    if paths:
        section, rates = compare_given(paths, options)
        sections.append(section)
    if options.synthetic_rows:
        sections += [compare_synthetic(options.synthetic_rows), compare_lists(paths, options)]
    text = "\n".join([*sections, system()])
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "reorder.md").write_text(text)
        (options.output / "reorder.svg").write_text(bar_chart("prefix hit rate, % of characters", rates))


def data_folder() -> Path:
    return Path(os.environ.get("LLMSQL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")


def read(path: Path, seed: int | None) -> pa.Table:
    columns = COLUMNS.get(path.stem)
    table = pq.read_table(path, columns=columns.split() if columns else None)
    return table if seed is None else shuffled(table, seed)


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def compare_given(paths: list[Path], options: argparse.Namespace) -> tuple[str, dict[str, dict[str, float]]]:
    methods, orders = options.methods.split(","), options.orders.split(",")
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    lines, summary, rates = [], [], {}
    for path in paths:
        for order in orders:
            table = read(path, options.seed if order == "shuffled" else None)
            found = measure_all(table, methods, tokenizer)
            for method, one in found.items():
                lines.append(
                    f"| {path.stem} | {table.num_rows:,} x {table.num_columns} | {order} | {method} | "
                    f"{one.characters:.1f} | {one.tokens:.1f} | {one.least_recently_used:.1f} | {one.seconds:.2f} | "
                    f"{one.megabytes:.0f} ({one.times_encoded:.1f} x) |"
                )
            print(f"{path.stem}, {order}: done", file=sys.stderr, flush=True)
            if order == orders[0]:
                summary.append(summarised(path.stem, table, found))
                rates[path.stem] = {method: one.characters for method, one in found.items()}
    head = "| table | rows x columns | order | method | characters % | tokens % | LRU % | CPU s | MiB |\n"
    comparison = (
        f"| {orders[0]} rows, characters % | {' | '.join(methods)} | ggr by its authors | CPU s: auto, ggr, theirs | "
        "auto in whole cells | bound | reached |\n"
    )
    return "\n".join([head + rule(head), *lines, "", comparison + rule(comparison), *summary, ""]), rates


def rule(head: str) -> str:
    return "|" + " --- |" * (head.count("|") - 1)


def measure_all(table: pa.Table, methods: list[str], tokenizer: Tokenizer) -> dict[str, Measured]:
    runs = {method: run_apart(*runs_of(table, method=method)) for method in methods}
    cells = encode(table)
    token_ids = [[np.array(one.ids, np.int32) for one in encode_texts(tokenizer, texts)] for texts in cells.texts]
    in_tokens = cells.with_lengths([[len(ids) for ids in column] for column in token_ids])
    encoded = (cells.codes.nbytes + sum(t.nbytes + n.nbytes for t, n in zip(cells.texts, cells.lengths))) / 2**20
    texts = published_cells(table)
    found = {}
    for method, (ordering, seconds, megabytes) in runs.items():
        by_tokens = reorder(in_tokens, method=method)
        limited = finite_cache_hits(in_tokens, by_tokens, CACHE_TOKENS)
        found[method] = Measured(
            100 * character_hit_rate(texts, ordering),
            100 * prefix_hits(cells, ordering, partial=False).cell_hit_rate,
            100 * prefix_hits(in_tokens, by_tokens, partial=False, token_ids=token_ids).hit_rate,
            100 * limited.units_hit / max(limited.units_total, 1),
            seconds,
            megabytes,
            megabytes / max(encoded, 1e-9),
        )
    return found


def runs_of(table: pa.Table, **options: object) -> tuple[partial, int, partial]:
    return partial(reorder, table, **options), REPEATS, partial(reorder, table.slice(0, 100), **options)


def encode_texts(tokenizer: Tokenizer, texts: pa.Array) -> list:
    return tokenizer.encode_batch(texts.to_pylist(), add_special_tokens=False)


def published_cells(table: pa.Table) -> list[list[str]]:
    """Per column the cells of all rows, as the tables' published figures write them."""
    columns = []
    for name in table.column_names:
        values = ["" if value is None else str(value) for value in table[name].to_pylist()]
        columns.append([f'"{name}": {json.dumps(value)}, ' for value in values])
    return columns


def character_hit_rate(columns: list[list[str]], ordering: Ordering) -> float:
    shown = zip(ordering.rows.tolist(), ordering.fields.tolist())
    prompts = ["".join([columns[field][row] for field in fields]) for row, fields in shown]
    return shared_prefixes(prompts) / max(sum(map(len, prompts)), 1)


def summarised(name: str, table: pa.Table, found: dict[str, Measured]) -> str:
    best = found.get("auto") or next(iter(found.values()))
    authors = AUTHORS.get(name)
    theirs = (f"{authors[0]:.1f}", f"{authors[1]:.1f}") if authors else ("", "")
    seconds = [f"{found[method].seconds:.2f}" if method in found else "" for method in ("auto", "ggr")]
    rates = " | ".join(f"{one.characters:.1f}" for one in found.values())
    bound = bound_rate(encode(table))
    reached = ("", "") if bound is None else (f"{100 * bound:.1f}", f"{best.whole_cells / bound:.0f} %")
    return (
        f"| {name} | {rates} | {theirs[0]} | {', '.join([*seconds, theirs[1]])} | {best.whole_cells:.1f} | "
        f"{' | '.join(reached)} |"
    )


def bound_rate(cells: Cells) -> float | None:
    """The bound as a share of all units; None where it would take too long."""
    if cells.num_rows**2 * cells.num_columns > BOUND_WORK:
        return None
    return hit_bound(cells) / max(int(cells.id_lengths[cells.ids].sum()), 1)


def compare_synthetic(rows: int) -> str:
    """Tables of unseen shapes: predicted hit rates, which the tests hold against counts."""
    head = (
        f"| synthetic, {rows:,} rows | columns | sort | fixed | ggr | tree | tree less the better of fixed and ggr | "
        "auto in whole cells | bound | reached |\n"
    )
    lines, gains = [], []
    for name, table in tables(rows=rows).items():
        cells = encode(table)
        stats = reorder(cells).stats
        rates = {method: 100 * stats.share(hits) for method, hits in stats.candidates.items()}
        gains.append(rates["tree"] - max(rates["fixed"], rates["ggr"]))
        bound, whole = bound_rate(cells), 100 * stats.share(stats.hit_units)
        reached = ("", "") if bound is None else (f"{100 * bound:.1f}", f"{whole / bound:.0f} %" if bound else "")
        by_method = " | ".join(f"{rates[method]:.1f}" for method in ("sort", "fixed", "ggr", "tree"))
        lines.append(
            f"| {name} | {table.num_columns} | {by_method} | {gains[-1]:+.1f} | {whole:.1f} | {' | '.join(reached)} |"
        )
        print(f"{name}: done", file=sys.stderr, flush=True)
    below = sum(gain < -0.05 for gain in gains)
    verdict = (
        f"`tree` alone is below the better of `fixed` and `ggr` on {below} of {len(gains)} tables; `auto` never is."
    )
    return "\n".join([head + rule(head), *lines, "", verdict, ""])


def compare_lists(paths: list[Path], options: argparse.Namespace) -> str:
    """Order-free lists: as one cell with sorted items, before or behind all else, or node by node."""
    ways = ("list first", "list after shared", "list by node", "list by node, rather early")
    head = "| order-free lists | rows x columns | as given | as cells | before | behind | by node | auto | CPU s |\n"
    lines = []
    given = [(f"{p.stem}, one list", as_one_list(read(p, options.seed)), ["contexts"]) for p in paths if is_squad(p)]
    for name, table, lists in [*given, *list_tables(rows=options.synthetic_rows)]:
        ordering, seconds, _ = run_apart(*runs_of(table, unordered=lists))
        stats = ordering.stats
        rates = {way: 100 * stats.share(hits) for way, hits in stats.candidates.items()}
        cells = max(rates[method] for method in ("sort", "fixed", "ggr", "tree"))
        first, behind, *by_node = (rates.get(way, 0.0) for way in ways)
        shown = [rates["none"], cells, first, behind, max(by_node), 100 * stats.hit_rate]
        figures = " | ".join(f"{rate:.1f}" if rate else "as before" for rate in shown)
        lines.append(f"| {name} | {table.num_rows:,} x {table.num_columns} | {figures} | {seconds:.2f} |")
    return "\n".join([head + rule(head), *lines, ""])


def is_squad(path: Path) -> bool:
    return path.stem == "squad_rag5"


def as_one_list(table: pa.Table) -> pa.Table:
    contexts = [table.column(f"context{i}").to_pylist() for i in range(1, 6)]
    return pa.table({"question": table["question"], "contexts": [list(row) for row in zip(*contexts)]})


def system() -> str:
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}"
    return f"{platform.machine()}, {versions}; one thread, other work may have run on the machine.\n"


if __name__ == "__main__":
    main()
