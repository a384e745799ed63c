"""What the engine itself costs per step on the host: tree, scheduler, batch building, readout; the model is left out.

    python benchmarks/overhead.py            # about a minute

The model runner is replaced by one that returns ready logits at once. Rows decode without end-of-sequence tokens below
trees of several depths; in the mixed runs rows of many lengths come and go. CPU time of the process, microseconds per
step, median over steps.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import statistics
import time

import numpy as np
import torch
import transformers

from llmsql.gpu_backend import Engine, Request
from llmsql.gpu_backend.batch import StepBatch

VOCAB = 64
PARTS = ("schedule", "build batch", "commit", "read out")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows and steps: shows that everything runs")
    options = parser.parse_args(arguments)
    rows, output = (8, 12) if options.quick else (256, 128)
    torch.set_num_threads(1)
    print(f"{rows} running rows, {output} tokens each\n")
    print("| tree | rows per step | " + " | ".join(PARTS) + " | whole step |\n|" + " --- |" * (len(PARTS) + 3))
    for depth in (2, 3, 4, 5):
        measure(f"depth {depth}, decode", prompts(rows, depth), [output] * rows, rows)
    lengths = np.random.default_rng(0).integers(output // 4, output * 2, 4 * rows).tolist()
    measure("depth 3, rows come and go", prompts(4 * rows, 3), lengths, rows)


def measure(name: str, token_ids: list[np.ndarray], lengths: list[int], rows: int) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    config.eos_token_id = None
    with Engine(transformers.LlamaForCausalLM(config), max_running=rows, max_batch_tokens=1024) as engine:
        logits = torch.randn(4096, VOCAB)
        spent: dict[str, list[float]] = {part: [] for part in PARTS}
        row_counts: list[int] = []

        def forward(batch: StepBatch) -> torch.Tensor:
            row_counts.append(len(batch.readers))
            return logits[: len(batch.logit_index)]

        def timed(part: str, owner: object, method: str) -> None:
            original = getattr(owner, method)

            def run(*values: object, **options: object) -> object:
                started = time.process_time()
                try:
                    return original(*values, **options)
                finally:
                    spent[part].append(time.process_time() - started)

            setattr(owner, method, run)

        engine._runner.forward = forward  # type: ignore[method-assign]
        timed("schedule", engine._scheduler, "schedule")
        timed("build batch", engine._batches, "build")
        timed("commit", engine._scheduler, "commit")
        timed("read out", engine, "_read")
        steps = []
        step = engine._step

        def whole(*values: object, **options: object) -> None:
            started = time.process_time()
            step(*values, **options)  # type: ignore[arg-type]
            steps.append(time.process_time() - started)

        engine._step = whole  # type: ignore[method-assign]
        requests = [Request(row, ids, max_tokens=n) for row, (ids, n) in enumerate(zip(token_ids, lengths))]
        for answer in engine.generate(requests):
            assert answer.error is None, answer.error
    full = [index for index, count in enumerate(row_counts) if count == max(row_counts)][1:]
    middle = [1e6 * statistics.median(spent[part][index] for index in full) for part in PARTS]
    total = 1e6 * statistics.median(steps[index] for index in full)
    cells = " | ".join(f"{microseconds:.0f}" for microseconds in (*middle, total))
    print(f"| {name} | {max(row_counts)} | {cells} |", flush=True)


def prompts(count: int, depth: int) -> list[np.ndarray]:
    """Rows below a tree in which every level has a run of 12 tokens and parts in four; the last part is the row's."""
    rng = np.random.default_rng(0)
    runs: dict[tuple[int, ...], np.ndarray] = {}
    result = []
    for row in range(count):
        path = tuple((row * 4 ** (level + 1) // count) % 4 for level in range(depth - 1))
        ids = []
        for level in range(depth - 1):
            ids.append([path[level]])
            ids.append(runs.setdefault(path[: level + 1], rng.integers(4, VOCAB, 12)))
        own = [4 + row // 60 % 60, 4 + row % 60]
        result.append(np.concatenate([*ids, own, rng.integers(4, VOCAB, 10)]).astype(np.int64))
    return result


if __name__ == "__main__":
    main()
