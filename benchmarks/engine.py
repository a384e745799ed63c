"""The engine against transformers and other engines, and each of its optimisations against its off-switch.

    python benchmarks/engine.py                                     # about five minutes on 2 cores
    python benchmarks/engine.py --quick                             # the same steps, tiny
    python benchmarks/engine.py --models 20M,135M --dtypes fp32,bf16 --workloads shared,none
    python benchmarks/engine.py --peer vllm=/path/to/its/python --peer openvino=/path/to/another

Models are random, so nothing is downloaded. All rows of a table are measured in one run on the same token ids, after a
warm-up on others; a ratio is to the first row of its table. Peers run in processes of their own (engine_peers.py says
how each is set up). CPU seconds are of all threads. "host" is what the engine does around the model, per step.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the engine has it where it is imported before torch

import argparse
import inspect
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))

from engine_peers import PEERS, generate_batch, generate_padded, timed
from engine_workloads import JSON_SCHEMA, MODELS, QUICK_WORKLOADS, TOKENIZER, WORKLOADS, Workload, random_model

from llmsql.gpu_backend import Engine, EngineStats, Grammar, Request

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {  # workload on which a switch shows -> name and settings
    "cascade": ("any", {"cascade": False}),
    "share_in_step": ("any", {"share_in_step": False}),
    "prefix_sharing": ("shared", {"prefix_sharing": False}),
    "fused": ("any", {"fused": False}),
    "kernels": ("any", {"kernels": "torch"}),
    "forced_tokens": ("json", {"forced_tokens": False}),
    "overlap_masks": ("json", {"overlap_masks": False}),
}
BASELINES = {"generate": generate_padded, "generate_batch": generate_batch}


@dataclass(frozen=True)
class Case:
    """What one table is about."""

    model_name: str
    model: transformers.PreTrainedModel
    dtype: str
    name: str
    workload: Workload
    options: argparse.Namespace

    def runs(self) -> list[list[list[int]]]:
        """The prompts of each measured run; each has its own, since engines remember prefixes."""
        return [self.workload.prompts(seed) for seed in range(1, self.options.repeat + 1)]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__},", end=" ")
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}")
    workloads = QUICK_WORKLOADS if options.quick else WORKLOADS
    for model_name in options.models:
        for dtype in options.dtypes:
            model = random_model(model_name, DTYPES[dtype])
            size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            print(f"\n## {type(model).__name__}, {size:.0f} M parameters, {dtype}")
            for name in options.workloads:
                case = Case(model_name, model, dtype, name, workloads[name], options)
                print(f"\n### {name}: {case.workload.title}\n")
                measure(case)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny model and batches: shows that everything runs")
    parser.add_argument("--models", type=_names(MODELS), default=None, help=f"of {', '.join(MODELS)}; default 20M")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--dtypes", type=_names(DTYPES), default=["fp32"], help="fp32, bf16")
    parser.add_argument(
        "--baselines",
        type=_names(BASELINES),
        default=None,
        help="of transformers: generate, generate_batch, or '' for none; default: generate, first workload both",
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--no-switches", action="store_true", help="leave out what the engine does with a switch off")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="the median of this many runs is reported")
    options = parser.parse_args(arguments)
    options.models = options.models or (["tiny"] if options.quick else ["20M"])
    options.peers = dict(peer.split("=", 1) for peer in options.peer)
    if unknown := sorted(set(options.peers) - set(PEERS)):
        parser.error(f"unknown peer {unknown[0]}: choose from {', '.join(PEERS)}")
    return options


def measure(case: Case) -> None:
    """Print the table of one workload."""
    table = Table()
    options, first, answer = case.options, next(iter(WORKLOADS)), case.workload.answer
    if answer != "json":  # a peer generates text; for a choice one token, which is the least that it could do
        baselines = list(BASELINES) if case.name == first else ["generate"]
        for name in baselines if options.baselines is None else options.baselines:
            runs = timed(BASELINES[name](case.model), spec_of(case))
            table.add(f"transformers.{name}", _median(runs, "seconds"), _median(runs, "cpu_seconds"), case)
        for name, python in options.peers.items():
            run_peer(table, name, python, case)
    if answer == "choice":
        run_engine(table, "engine, one token, prefix_sharing=False", case, one_token=True, prefix_sharing=False)
        run_engine(table, "engine, one token", case, one_token=True)
    run_engine(table, "engine" if answer == "text" else f"engine, {answer}", case)
    known = inspect.signature(Engine).parameters
    for name, (where, settings) in SWITCHES.items():
        shows = where == case.name or (where == "any" and answer == "text")
        if shows and name in known and not options.no_switches:
            run_engine(table, f"engine, {name}={settings[name]}", case, **settings)
    if case.name == first and not options.no_switches:
        for cached in (True, False):
            run_engine(table, f"engine, second batch, prefix_cache={cached}", case, second=True, prefix_cache=cached)


class Table:
    """Rows of Markdown; ratios are to the first row."""

    def __init__(self) -> None:
        self.first: float | None = None
        print("| run | seconds | CPU seconds | new tokens/s | ratio | prompt tokens computed | steps | host ms/step |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")

    def add(
        self,
        name: str,
        seconds: float,
        cpu_seconds: float,
        case: Case,
        stats: EngineStats | None = None,
        new_tokens: int | None = None,
    ) -> None:
        """Print one row."""
        self.first = self.first or seconds
        rows = len(case.workload.prompts(0))
        count = rows * case.workload.output if new_tokens is None else new_tokens
        cells = [name, f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{count / seconds:.0f}", f"{self.first / seconds:.2f}"]
        if stats is None:
            cells += ["", "", ""]
        else:
            host = (stats.schedule_seconds + stats.sample_seconds) / stats.steps
            cells += [str(stats.computed_tokens), str(stats.steps), f"{1000 * host:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def run_engine(
    table: Table, name: str, case: Case, *, one_token: bool = False, second: bool = False, **switches: Any
) -> None:
    """Measure the engine on fresh prompts; with `second` on a batch that shares its beginnings with one before it."""
    workload = case.workload

    def request(row: int, ids: Sequence[int]) -> Request:
        if workload.answer == "choice" and not one_token:
            return Request(row, ids, choices=[[5], [6]])
        if workload.answer == "json":
            return Request(row, ids, max_tokens=workload.output, grammar=Grammar.json_schema(JSON_SCHEMA))
        return Request(row, ids, max_tokens=workload.output, ignore_eos=True)

    with Engine(case.model, dtype=case.model.dtype, tokenizer=TOKENIZER, **switches) as engine:

        def work(prompts: list[list[int]]) -> None:
            for answer in engine.generate(request(row, ids) for row, ids in enumerate(prompts)):
                assert answer.error is None, answer.error
                if workload.answer == "json":
                    assert not answer.incomplete, answer.text
                    json.loads(answer.text)

        work(workload.prompts(0, rows=8))
        runs, parts = [], []
        for prompts in case.runs():
            if second:
                work(prompts)
                prompts = [[*prompt[:-1], 2001] for prompt in prompts]
            before = engine.stats.snapshot()
            runs.append(stopwatch(lambda: work(prompts)))  # noqa: B023
            parts.append(engine.stats.difference(before))
    stats = parts[0]
    new_tokens = len(case.runs()[0]) if workload.answer == "choice" else stats.output_tokens
    table.add(name, _median(runs, "seconds"), _median(runs, "cpu_seconds"), case, stats, new_tokens)


def run_peer(table: Table, name: str, python: str, case: Case) -> None:
    """Measure a peer in a process of its own; a failure is reported as a row."""
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, folder)
        spec = Path(folder) / "spec.json"
        spec.write_text(json.dumps({**spec_of(case), "model": folder}))
        script = str(Path(__file__).with_name("engine_peers.py"))
        done = subprocess.run([python, script, name, str(spec)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"| {name}: failed: {reason[:120]} | | | | | | | |", flush=True)
        return
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    runs = answer["runs"]
    table.add(answer["version"], _median(runs, "seconds"), _median(runs, "cpu_seconds"), case)


def spec_of(case: Case) -> dict[str, Any]:
    """What a peer is asked to do."""
    return {
        "dtype": case.dtype,
        "threads": case.options.threads,
        "warm_up": case.workload.prompts(0, rows=8),
        "runs": case.runs(),
        "output": case.workload.output,
    }


def stopwatch(work: Callable[[], None]) -> dict[str, float]:
    """Wall seconds, and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _median(runs: list[dict[str, float]], field: str) -> float:
    return statistics.median(run[field] for run in runs)


def _names(known: Any) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}: choose from {', '.join(known)}")
        return chosen

    return names


if __name__ == "__main__":
    main()
