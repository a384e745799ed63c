"""Tables of many shapes, made from seeds: what no method was tuned on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

Generator = np.random.Generator
SEEDS = (101, 202, 303)
ROWS = 4_000


def tables(seeds: tuple[int, ...] = SEEDS, rows: int = ROWS) -> dict[str, pa.Table]:
    """By name; the seed sets the shape of a table (how many columns, values, how long and how skewed), too."""
    return {
        f"{name} {seed}": pa.table(maker(np.random.default_rng(seed), rows))
        for name, maker in MAKERS.items()
        for seed in seeds
    }


def words(generator: Generator, name: str, number: int, most: int) -> str:
    """A text of its own for a number."""
    return f"{name} {number} " + "word " * int(generator.integers(0, most))


def values(generator: Generator, name: str, count: int, most: int = 20) -> np.ndarray:
    return np.array([words(generator, name, number, most) for number in range(count)], dtype=object)


def skewed(generator: Generator, count: int, rows: int) -> np.ndarray:
    """Numbers below count, with the frequencies of a power law of random steepness, in random order."""
    chances = 1 / np.arange(1, count + 1) ** generator.uniform(0, 1.5)
    return generator.permutation(count)[generator.choice(count, rows, p=chances / chances.sum())]


def star(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Facts with a few dimensions joined: each key determines some texts."""
    columns: dict[str, np.ndarray] = {"fact": np.arange(rows)}
    for dimension in range(int(generator.integers(2, 5))):
        size = int(generator.integers(5, 600))
        keys = skewed(generator, size, rows)
        columns[f"key {dimension}"] = keys
        for attribute in range(int(generator.integers(1, 4))):
            made = values(generator, f"attribute {attribute}", size, int(generator.integers(2, 60)))
            columns[f"attribute {dimension} {attribute}"] = made[keys // int(generator.integers(1, 4))]
    return {name: columns[name] for name in generator.permutation(list(columns))}


def independent(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Columns that know nothing of each other."""
    columns = {}
    for column in range(int(generator.integers(4, 12))):
        size = int(10 ** generator.uniform(0.5, 3.5))
        made = values(generator, f"value {column}", size, int(generator.integers(2, 40)))
        columns[f"column {column}"] = made[skewed(generator, size, rows)]
    return columns


def near_duplicates(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Records that were entered again and again, each time with some fields changed."""
    fields = int(generator.integers(5, 12))
    records = int(rows / generator.uniform(3, 20))
    original = skewed(generator, records, rows)
    changed = generator.random((rows, fields)) < generator.uniform(0.05, 0.3)
    columns = {}
    for field in range(fields):
        made = values(generator, f"field {field}", 2 * records, int(generator.integers(2, 30)))
        other = generator.integers(records, 2 * records, rows)
        columns[f"field {field}"] = made[np.where(changed[:, field], other, original)]
    return columns


def hierarchy(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Levels that lie in each other, and some columns beside them."""
    columns = {}
    numbers = generator.integers(0, 3, rows)
    for level in range(int(generator.integers(3, 6))):
        made = values(generator, f"level {level}", int(numbers.max()) + 1, int(generator.integers(2, 60)))
        columns[f"level {level}"] = made[numbers]
        numbers = numbers * int(generator.integers(2, 7)) + generator.integers(0, 2, rows) * generator.integers(0, 3)
    columns["flag"] = skewed(generator, 3, rows)
    columns["note"] = values(generator, "note", rows, 20)
    return {name: columns[name] for name in generator.permutation(list(columns))}


def passages(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """A question and the passages found for it, which come from few documents each."""
    documents, each = int(generator.integers(20, 200)), int(generator.integers(5, 20))
    made = values(generator, "passage", documents * each, 80)
    document = skewed(generator, documents, rows)
    columns: dict[str, np.ndarray] = {"question": values(generator, "question", rows, 8)}
    chosen = generator.random((rows, each)).argsort(axis=1)
    for place in range(int(generator.integers(3, 6))):
        columns[f"passage {place}"] = made[document * each + chosen[:, place % each]]
    return columns


def kinds(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Records of several kinds in one table: each kind fills columns of its own, the others are NULL."""
    kind = skewed(generator, int(generator.integers(3, 8)), rows)
    columns: dict[str, np.ndarray] = {"kind": values(generator, "kind", 8)[kind]}
    for column in range(int(generator.integers(6, 20))):
        size = int(10 ** generator.uniform(0.5, 3))
        made = values(generator, f"value {column}", size, int(generator.integers(2, 40)))
        filled = generator.random(int(kind.max()) + 1) < 0.5
        columns[f"column {column}"] = np.where(filled[kind], made[skewed(generator, size, rows)], None)
    return columns


def templates(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Texts that begin alike without being equal: addresses, form letters."""
    columns: dict[str, np.ndarray] = {"id": np.arange(rows)}
    for column in range(int(generator.integers(2, 6))):
        begins = values(generator, f"template {column}", int(generator.integers(2, 40)), int(generator.integers(2, 60)))
        begin = skewed(generator, len(begins), rows)
        columns[f"text {column}"] = begins[begin] + np.array(
            [str(n) for n in generator.integers(0, 10**6, rows)], object
        )
    columns["category"] = values(generator, "category", 9)[skewed(generator, 9, rows)]
    return columns


def wide(generator: Generator, rows: int) -> dict[str, np.ndarray]:
    """Many columns: some joined from dimensions, most independent."""
    columns = star(generator, rows)
    for _ in range(3):
        more = independent(generator, rows)
        columns.update({f"{name} of group {len(columns)}": column for name, column in more.items()})
    return columns


MAKERS: dict[str, Callable[[Generator, int], dict[str, np.ndarray]]] = {
    "star": star,
    "independent": independent,
    "near duplicates": near_duplicates,
    "hierarchy": hierarchy,
    "passages": passages,
    "kinds": kinds,
    "templates": templates,
    "wide": wide,
}


def list_tables(seeds: tuple[int, ...] = SEEDS, rows: int = ROWS) -> list[tuple[str, pa.Table, list[str]]]:
    """Questions with metadata and one or two lists of passages, as retrieval returns them; and the lists' names."""
    return [
        (f"retrieval {seed}-{part}", *_retrieval(np.random.default_rng([seed, part]), rows))
        for seed in seeds
        for part in range(2)
    ]


def _retrieval(generator: Generator, rows: int) -> tuple[pa.Table, list[str]]:
    columns: dict[str, object] = {"question": values(generator, "question", rows, 8)}
    tenants = int(10 ** generator.uniform(0.5, 2.5))
    tenant = skewed(generator, tenants, rows)
    columns["tenant"] = values(generator, "tenant", tenants, int(10 ** generator.uniform(1, 2.5)))[tenant]
    columns["day"] = skewed(generator, 28, rows)
    columns["language"] = skewed(generator, 5, rows)
    lists = [f"passages {number}" for number in range(int(generator.integers(1, 3)))]
    for name in lists:
        corpus, most = int(10 ** generator.uniform(1.5, 3)), int(generator.integers(2, 8))
        made = values(generator, "passage", corpus, 80)
        related = generator.random(rows) < generator.uniform(0, 1)  # to what the tenant stores
        places = generator.permuted(np.tile(np.arange(20), (rows, 1)), axis=1)[:, :most]
        numbers = np.stack([skewed(generator, corpus, rows) for _ in range(most)], axis=1)
        numbers = np.where(related[:, None], (places + 15 * tenant[:, None]) % corpus, numbers)
        counts = np.where(generator.random(rows) < 0.1, generator.integers(0, most + 1, rows), most)
        columns[name] = [made[row[:count]].tolist() for row, count in zip(numbers, counts.tolist())]
    return pa.table(columns), lists
