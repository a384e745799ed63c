"""Hit rates and seconds of every reordering method on Parquet tables, as a Markdown table.

    python benchmarks/reorder.py ../shared/data/*.parquet --plot reorder.png

The figure is the prefix hit rate: characters of the prompt bodies that some earlier prompt has as its prefix too, over
all characters, with an unbounded cache, the whole table as one batch and the instructions left out. "cells" counts
whole cells only, "characters" also the begin of the first cell that differs, and with --tokenizer "tokens" counts
whole cells in tokens. MiB is the peak of numpy and Python while reordering, without what
Arrow holds. Rows are shuffled with a seed, and also taken as they stand in the file.
"""

from __future__ import annotations

import argparse
import platform
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmsql.optimizer import METHODS, Cells, encode, prefix_hits, reorder

# the fields that the published experiments show to the model; other tables are taken whole
COLUMNS = {
    "movies": ["reviewcontent", "reviewtype", "topcritic", "movieid", "movieinfo", "genres", "productioncompany"],
    "products": [
        "text",
        "description",
        "parent_asin",
        "review_title",
        "verified_purchase",
        "rating",
        "product_title",
        "id",
    ],
    "bird_posts": ["Text", "PostId", "PostDate", "Body"],
}
HEAD = "| table | rows | columns | order | method | cells % | characters % | tokens % | seconds | MiB |\n"
RULE = "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="Parquet files")
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name != "ophr"))
    parser.add_argument("--orders", default="shuffled,natural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", help="tokenizer.json for the figure in tokens")
    parser.add_argument("--memory", action="store_true", help="trace peak memory in a second run")
    parser.add_argument("--output", type=Path, help="Markdown file; printed when left out")
    parser.add_argument("--plot", type=Path, help="image of the shuffled hit rates; needs matplotlib")
    options = parser.parse_args()
    lines, rates = [], {}
    for path in options.tables:
        for order in options.orders.split(","):
            table = read(path, options.seed if order == "shuffled" else None)
            cells = encode(table)
            tokens = with_token_lengths(cells, options.tokenizer) if options.tokenizer else None
            for method in options.methods.split(","):
                rate, line = measure(table, cells, tokens, method, options.memory)
                rates[path.stem, order, method] = rate
                lines.append(
                    f"| {path.stem} | {table.num_rows:,} | {table.num_columns} | {order} | {method} | {line} |\n"
                )
                print(lines[-1], end="", flush=True)
    system = (
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}"
    )
    text = HEAD + RULE + "".join(lines) + f"\nSeconds with encoding, best of three, one process; {system}.\n"
    if options.output:
        options.output.write_text(text)
    else:
        print("\n" + text)
    if options.plot:
        plot(rates, options.plot)


def read(path: Path, seed: int | None) -> pa.Table:
    table = pq.read_table(path, columns=COLUMNS.get(path.stem))
    return table if seed is None else table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def with_token_lengths(cells: Cells, tokenizer_file: str) -> Cells:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    encoded = (tokenizer.encode_batch(texts.to_pylist(), add_special_tokens=False) for texts in cells.texts)
    return cells.with_lengths([[len(one.ids) for one in column] for column in encoded])


def measure(table: pa.Table, cells: Cells, tokens: Cells | None, method: str, memory: bool) -> tuple[float, str]:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ordering = reorder(table, method=method)
        seconds.append(time.perf_counter() - started)
    hits = prefix_hits(cells, ordering)
    in_tokens = f"{100 * prefix_hits(tokens, reorder(tokens, method=method)).hit_rate:.1f}" if tokens else ""
    peak = ""
    if memory:
        tracemalloc.start()
        reorder(table, method=method)
        peak = f"{tracemalloc.get_traced_memory()[1] / 2**20:.0f}"
        tracemalloc.stop()
    rate = 100 * hits.character_hit_rate
    return rate, f"{100 * hits.hit_rate:.1f} | {rate:.1f} | {in_tokens} | {min(seconds):.2f} | {peak}"


def plot(rates: dict[tuple[str, str, str], float], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'llmsql[bench]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = list(dict.fromkeys(table for table, _, _ in rates))
    methods = list(dict.fromkeys(method for _, _, method in rates))
    figure, axes = plt.subplots(figsize=(3 + 1.5 * len(tables), 4))
    for number, method in enumerate(methods):
        heights = [rates.get((table, "shuffled", method), 0.0) for table in tables]
        axes.bar(np.arange(len(tables)) + 0.8 * number / len(methods), heights, 0.8 / len(methods), label=method)
    axes.set_xticks(np.arange(len(tables)) + 0.4 - 0.4 / len(methods), tables)
    axes.set_ylabel("prefix hit rate, % of characters (shuffled rows)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
