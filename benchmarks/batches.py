"""Prompt tokens of tables that come in batches, each ordered by itself or after the ones before: no model is run.

    python benchmarks/batches.py ../shared/data/*.parquet --output benchmarks/out

Fields are measured by the demo model's tokenizer, instructions left out. Percent are computed tokens more than when the
whole table is ordered as one batch, partly shared cells included, with an unbounded cache of all batches' prompts.

- "apart": `reorder` of each batch; "after": `PromptMemory.reorder`; "expecting more": that with `more=True`.
- "LRU": whole cells found by a least-recently-used cache of CACHE_TOKENS tokens, in percent of all tokens, where the
  memory is told the capacity.
- "CPU s": of ordering all batches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reorder import COLUMNS, data_folder, encode_texts, rule, shuffled
from tokenizers import Tokenizer

import llmsql.demo
from llmsql.optimizer import Cells, Ordering, PromptMemory, encode, finite_cache_hits, prefix_hits, reorder

CACHE_TOKENS = 262_144
WAYS = ("apart", "after", "expecting more")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="Parquet files")
    parser.add_argument("--batches", default="4,10")
    parser.add_argument("--orders", default="shuffled,natural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="only so many of each table")
    parser.add_argument("--output", type=Path, help="folder for batches.md")
    options = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_file(str(llmsql.demo.MODEL_FOLDER / "tokenizer.json"))
    head = "| table | rows | order | batches | one batch | apart, after, expecting more % | LRU % | CPU s |\n"
    lines = [head + rule(head)]
    print(lines[0], flush=True)
    for path in options.tables or sorted(data_folder().glob("*.parquet")):
        columns = COLUMNS.get(path.stem)
        given = pq.read_table(path, columns=columns.split() if columns else None)
        for order in options.orders.split(","):
            table = (shuffled(given, options.seed) if order == "shuffled" else given).slice(0, options.rows)
            for figures in compared(table, tokenizer, [int(count) for count in options.batches.split(",")]):
                lines.append(f"| {path.stem} | {table.num_rows:,} | {order} | {figures} |")
                print(lines[-1], flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "batches.md").write_text("\n".join(lines) + "\n")


def compared(table: pa.Table, tokenizer: Tokenizer, counts: list[int]) -> list[str]:
    cells = encode(table)
    token_ids = [[np.array(one.ids, np.int32) for one in encode_texts(tokenizer, texts)] for texts in cells.texts]
    cells = cells.with_lengths([[len(ids) for ids in column] for column in token_ids])
    one = computed(cells, reorder(cells), token_ids)
    lines = []
    for count in counts:
        more, hits, seconds = [], [], []
        for way in WAYS:
            started = time.process_time()
            ordering = in_batches(cells, count, way, None)
            seconds.append(f"{time.process_time() - started:.2f}")
            more.append(f"{100 * computed(cells, ordering, token_ids) / one - 100:+.1f}")
            found = finite_cache_hits(cells, in_batches(cells, count, way, CACHE_TOKENS), CACHE_TOKENS)
            hits.append(f"{100 * found.units_hit / max(found.units_total, 1):.1f}")
        lines.append(f"{count} | {one:,} | {', '.join(more)} | {', '.join(hits)} | {', '.join(seconds)}")
    return lines


def in_batches(cells: Cells, count: int, way: str, capacity: int | None) -> Ordering:
    """The rows as they are shown when they come in so many batches."""
    memory = PromptMemory(capacity)
    rows, fields = [], []
    for batch in np.array_split(np.arange(cells.num_rows), count):
        part = cells.select_rows(batch)
        ordering = reorder(part) if way == "apart" else memory.reorder(part, more=way == "expecting more")
        rows.append(batch[ordering.rows])
        fields.append(ordering.fields)
    return Ordering(np.concatenate(rows), np.concatenate(fields), ordering.stats)


def computed(cells: Cells, ordering: Ordering, token_ids: list[list[np.ndarray]]) -> int:
    found = prefix_hits(cells, ordering, partial=False, token_ids=token_ids)
    return found.units_total - found.units_hit - found.units_partial


if __name__ == "__main__":
    main()
