"""Prompt tokens that Spark's tasks compute, against one machine: `python benchmarks/spark.py --output benchmarks/out`.

Each Parquet file of $LLMSQL_DATA or ../shared/data is shuffled with a seed, stored as one file per task slot, and asked
about by `llm_filter` over all of its fields. The model records the token ids of the prompts that it is shown, and by
which task, with the demo model's tokenizer (or --tokenizer), the question included and the chat template left out;
nothing is computed by formula. Spark runs with 2 workers of 2 slots each: on one machine (`local[4]`) a worker is two
of Spark's four Python processes, each of which runs one task at a time; on a cluster (`--master`) it is what Spark
calls one.

- "one machine": the same statement in DuckDB, one batch.
- "planned": `with_llm`, that is distinct tuples laid out over the whole cluster.
- "UDF": `DataFrame.withColumn` with the plain function, which sees its own partition only.
- "after": the same with engines that order a batch after the prompts of earlier ones (`follow_earlier`). Each is a
  Flight server beside the driver, so this works on one machine only. Beside it, "node as one batch": the rows of each
  node ordered together, as if it had waited for the last of them.
- "none": the UDF with `reorder=False`.

Counted up to three times: with a prefix cache for each task, as where every task has an engine of its own, with one for
each worker, as with `engine="node"`, where the tasks of a node meet in one engine, and with one for all tasks, as where
the cluster is one machine. Caches are unbounded. Percent are of what one machine computes. The bound is what no order
of rows and fields within the tasks (or nodes) of the UDF can go below: however cells are arranged, each way in which a
cell of a column begins is computed once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count as numbers
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefixes import shared_prefixes
from tokenizers import Tokenizer

import llmsql
import llmsql.demo
from llmsql.batch_prompts import prepare_prompts
from llmsql.functions import Call, make_call
from llmsql.model import Answer, Model
from llmsql.optimizer import Cells, Ordering, encode, reorder
from llmsql.prompt_memories import PromptMemories
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

QUESTION = "Does this row stand out among others of its kind?"
NODES, SLOTS = 2, 4
MASTER = f"local[{SLOTS}]"
# the fields that the published experiments show to the model; other tables are taken whole
COLUMNS = {
    "movies": "reviewcontent reviewtype topcritic movieid movieinfo genres productioncompany",
    "products": "text description parent_asin review_title verified_purchase rating product_title id",
    "bird_posts": "Text PostId PostDate Body",
}


class Tokens:
    """A tokenizer without its model, as `prepare_prompts` uses it; quickly loaded, since every worker does."""

    additive = True

    def __init__(self, path: str):
        self.encoder = Tokenizer.from_file(path)

    def encode_cells(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(one.ids, np.int32) for one in self.encoder.encode_batch(texts, add_special_tokens=False)]

    def chat_frame(self, system: str | None, *, opening: str, closing: str) -> list[np.ndarray]:
        return self.encode_cells([opening, closing])


@dataclass
class RecordingModel:
    """Says yes to all, and writes the token ids of the prompts that each batch showed into a folder."""

    folder: str
    tokenizer: str

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        yield from self.record(call, fields, settings, reorder)

    def record(
        self, call: Call, fields: pa.Table, settings: Settings, reorder_cells: Callable[[Cells], Ordering]
    ) -> Iterator[Answer]:
        tokens, lengths = [], []
        tokenizer = Tokens(self.tokenizer)
        for row, token_ids in prepare_prompts(call, fields, tokenizer, settings, reorder_cells=reorder_cells):
            tokens.append(token_ids)
            lengths.append(len(token_ids))
            yield Answer(row, "Yes")
        name = f"{os.getppid()}-{os.getpid()}-{task()}-{time.monotonic_ns()}"
        np.savez(Path(self.folder) / name, tokens=np.concatenate(tokens), lengths=np.array(lengths))

    def close(self) -> None:
        pass


class RecordingEngine(RecordingModel):
    """The same as one engine of several tasks, which remembers the prompts that it was shown."""

    def __init__(self, folder: str, tokenizer: str):
        super().__init__(folder, tokenizer)
        self.memories = PromptMemories(2**62)

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        with self.memories.reordering(call, fields.column_names, more=statistics.more) as reorder_cells:
            yield from self.record(call, fields, settings, reorder_cells)


@dataclass
class AtNode:
    """Asks the engine of the node that this Python worker belongs to; workers count themselves in a folder."""

    addresses: list[str]
    folder: str
    models: ClassVar[dict[str, Model]] = {}  # of this process, by folder

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        from llmsql.serving.remote_model import model_at

        if self.folder not in self.models:
            number = next(number for number in numbers() if self.claims(number))
            address = self.addresses[number * len(self.addresses) // SLOTS % len(self.addresses)]
            self.models[self.folder] = model_at(address, "", Settings(engine=address), ())
        yield from self.models[self.folder].answer(call, fields, settings, statistics)

    def claims(self, number: int) -> bool:
        try:
            (Path(self.folder) / f"worker-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        pass


@contextmanager
def serving(folders: list[Path], tokenizer: str) -> Iterator[list[str]]:
    """The addresses of engines that write what they are shown into these folders."""
    from llmsql.serving.server import EngineServer, Limits

    with ExitStack() as stack:
        addresses = []
        for folder in folders:
            engine = RecordingEngine(str(folder), tokenizer)
            server = EngineServer(engine, name="recording", limits=Limits(max_request_bytes=2**31))
            stack.callback(server.stop)
            addresses.append(f"grpc://127.0.0.1:{server.port}")
        yield addresses


def task() -> str:
    from pyspark import TaskContext

    context = TaskContext.get()
    return "0" if context is None else str(context.taskAttemptId())


def nodes_of(processes: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The node of each Python process, given as (daemon, process); the workers of a node come from one daemon."""
    daemons = sorted({daemon for daemon, _ in processes}, key=int)
    if len(daemons) > 1:
        return {process: daemons.index(process[0]) for process in processes}
    in_order = sorted(set(processes), key=lambda process: int(process[1]))
    return {process: number * NODES // max(len(in_order), SLOTS) for number, process in enumerate(in_order)}


@dataclass(frozen=True)
class Computed:
    """Prompt tokens that are not a prefix of an earlier prompt in the same cache."""

    by_task: int
    by_node: int
    by_machine: int
    prompt_tokens: int
    tasks: int
    rows: int
    largest_share: float  # of what the tasks compute, times their number


def count(folder: Path) -> Computed:
    """From what the tasks recorded; how much of it is new does not depend on the order within an unbounded cache."""
    tasks: dict[str, list[bytes]] = defaultdict(list)
    nodes: dict[int, list[bytes]] = defaultdict(list)
    paths = {path: path.name.split("-") for path in sorted(folder.glob("*.npz"))}
    node_of = nodes_of([(daemon, process) for daemon, process, _, _ in paths.values()])
    for path, (daemon, process, task_name, _) in paths.items():
        with np.load(path) as found:
            tokens, ends = found["tokens"], np.cumsum(found["lengths"])
        data = tokens.astype(">u4").tobytes()
        prompts = [data[4 * first : 4 * last] for first, last in pairwise([0, *ends.tolist()])]
        tasks[task_name] += prompts
        nodes[node_of[daemon, process]] += prompts
    by_task = [new_tokens(prompts) for prompts in tasks.values()]
    return Computed(
        sum(by_task),
        sum(new_tokens(prompts) for prompts in nodes.values()),
        new_tokens([prompt for prompts in tasks.values() for prompt in prompts]),
        sum(len(prompt) // 4 for prompts in tasks.values() for prompt in prompts),
        len(tasks),
        sum(map(len, tasks.values())),
        max(by_task, default=0) / max(sum(by_task), 1) * len(by_task),
    )


def new_tokens(prompts: list[bytes]) -> int:
    """Nodes of the trie of the prompts' tokens."""
    return sum(map(len, prompts)) // 4 - shared_prefixes(prompts, width=4)


def least(table: pa.Table, groups: list[np.ndarray], tokenizer: str) -> int:
    """Tokens with which the distinct cells of each group of rows begin in different ways, and the question for each."""
    cells, tokens = encode(table), Tokens(tokenizer)
    data = [[ids.astype(">u4").tobytes() for ids in tokens.encode_cells(texts.to_pylist())] for texts in cells.texts]
    found = len(groups) * len(tokens.encode_cells([QUESTION])[0])
    for rows in groups:
        for number, column in enumerate(data):
            found += new_tokens([column[code] for code in np.unique(cells.codes[rows, number]).tolist() if code >= 0])
    return found


class Runs:
    """One table in every way."""

    def __init__(self, spark: SparkSession, table: pa.Table, scratch: Path, tokenizer: str):
        self.spark, self.table, self.scratch, self.tokenizer = spark, table, scratch, tokenizer
        self.source = scratch / "table"
        self.source.mkdir()
        self.slices = np.array_split(np.arange(table.num_rows), SLOTS)
        for number, rows in enumerate(self.slices):
            pq.write_table(table.take(pa.array(rows)), self.source / f"{number}.parquet")

    def model(self, name: str) -> RecordingModel:
        folder = self.scratch / name
        folder.mkdir()
        return RecordingModel(str(folder), self.tokenizer)

    def counted(self, name: str) -> Computed:
        return count(self.scratch / name)

    def one_machine(self) -> Computed:
        with llmsql.connect(model=self.model("one"), progress=False) as con:
            con.register("rows_of_table", self.table)
            fields = ", ".join(f'"{name}"' for name in self.table.column_names)
            con.sql(f"SELECT count(*) FROM rows_of_table WHERE llm_filter('{QUESTION}', {fields})").fetchall()
        return self.counted("one")

    def frame(self) -> DataFrame:
        frame = self.spark.read.parquet(str(self.source))
        return frame if frame.rdd.getNumPartitions() == SLOTS else frame.repartition(SLOTS)

    def in_spark(self, name: str, planned: bool, **settings: object) -> Computed:
        self.run(self.model(name), planned, **settings)
        return self.counted(name)

    def after(self, num_engines: int) -> int:
        """Tokens that the UDF computes with so many engines, which order batches after the prompts of earlier ones."""
        folders = [self.scratch / f"engine {number} of {num_engines}" for number in range(num_engines)]
        claims = self.scratch / f"workers of {num_engines}"
        for folder in (*folders, claims):
            folder.mkdir()
        with serving(folders, self.tokenizer) as addresses:
            self.run(AtNode(addresses, str(claims)), planned=False)
        return sum(count(folder).by_machine for folder in folders)

    def as_one_batch(self, rows: np.ndarray) -> int:
        """Tokens that are computed when these rows are ordered together."""
        fields, call = self.table.take(pa.array(rows)), make_call("llm_filter", QUESTION)
        prompts = prepare_prompts(call, fields, Tokens(self.tokenizer), Settings())
        return new_tokens([token_ids.astype(">u4").tobytes() for _, token_ids in prompts])

    def run(self, model: Model, planned: bool, **settings: object) -> None:
        from llmsql.spark import llm_filter, register, with_llm

        register(self.spark, model=model, **settings)
        column = llm_filter(QUESTION, *(f"`{field}`" for field in self.table.column_names))
        frame = with_llm(self.frame(), "yes", column) if planned else self.frame().withColumn("yes", column)
        found = frame.select("yes").groupBy("yes").count().collect()
        assert [(row[0], row[1]) for row in found] == [(True, self.table.num_rows)], found


def read(path: Path, seed: int) -> pa.Table:
    columns = COLUMNS.get(path.stem)
    table = pq.read_table(path, columns=columns.split() if columns else None)
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def session(master: str) -> SparkSession:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(master).config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    builder = builder.config("spark.ui.showConsoleProgress", "false").config("spark.driver.memory", "1g")
    builder = builder.config("spark.sql.shuffle.partitions", str(SLOTS))
    # tables are small: a file is a partition, as it would be where files are large
    builder = builder.config("spark.sql.files.openCostInBytes", str(2**27))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def percent(value: int, one: Computed) -> str:
    return f"{100 * value / one.by_task - 100:+.1f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="Parquet files")
    parser.add_argument("--master", default=MASTER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="only so many of each table")
    parser.add_argument("--tokenizer", default=str(llmsql.demo.MODEL_FOLDER / "tokenizer.json"))
    parser.add_argument("--only", default="planned,udf,after,none")
    parser.add_argument("--output", type=Path, help="folder for spark.md")
    options = parser.parse_args(arguments)
    folder = Path(os.environ.get("LLMSQL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
    paths = options.tables or sorted(folder.glob("*.parquet"))
    if not paths:
        print(f"no Parquet files in {folder}: set LLMSQL_DATA to the folder with the benchmark tables", file=sys.stderr)
        return
    head = (
        "| table | rows | one machine | planned: task, node | tasks, largest | UDF: task, node, machine | "
        "bound: task, node | after: node, machine | node as one batch | none: task, node |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    lines = [head]
    print(head, flush=True)
    spark = session(options.master)
    only = options.only.split(",")
    try:
        for path in paths:
            table = read(path, options.seed).slice(0, options.rows)
            with tempfile.TemporaryDirectory() as scratch:
                line = measured(path.stem, Runs(spark, table, Path(scratch), options.tokenizer), only)
            lines.append(line)
            print(line, flush=True)
    finally:
        spark.stop()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "spark.md").write_text("\n".join(lines) + "\n")


def measured(name: str, runs: Runs, only: list[str]) -> str:
    one = runs.one_machine()
    cells = [name, f"{one.rows:,}", f"{one.by_task:,}"]
    if "planned" in only:
        planned = runs.in_spark("planned", True)
        assert planned.rows == one.rows, (planned, one)
        cells += [f"{percent(planned.by_task, one)}, {percent(planned.by_node, one)}"]
        cells += [f"{planned.tasks}, {planned.largest_share:.2f}"]
    if "udf" in only:
        udf = runs.in_spark("udf", False)
        cells += [f"{percent(udf.by_task, one)}, {percent(udf.by_node, one)}, {percent(udf.by_machine, one)}"]
        halves = [np.concatenate(runs.slices[:2]), np.concatenate(runs.slices[2:])]
        bounds = [least(runs.table, groups, runs.tokenizer) for groups in (runs.slices, halves)]
        cells += [", ".join(percent(bound, one) for bound in bounds)]
    if "after" in only:
        cells += [", ".join(percent(runs.after(engines), one) for engines in (NODES, 1))]
        halves = np.array_split(np.arange(runs.table.num_rows), NODES)
        cells += [percent(sum(runs.as_one_batch(rows) for rows in halves), one)]
    if "none" in only:
        none = runs.in_spark("none", False, reorder=False)
        cells += [f"{percent(none.by_task, one)}, {percent(none.by_node, one)}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
