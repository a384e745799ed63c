"""The engine against padded `transformers.generate`, and each of its optimisations against its off-switch.

    python benchmarks/engine.py            # about two minutes on 2 cores
    python benchmarks/engine.py --quick    # the same steps, tiny

Workload: prompts that share a long beginning and differ in a short end, decoded greedily to a fixed length, and the
same prompts answered by choice. The model is a random Qwen2, so nothing is downloaded. All rows of the table are
measured in the same run; a ratio is to the nearest line above that is marked 1.0.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the engine has it where it is imported before torch

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers

from llmsql.gpu_backend import Engine, Request


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and batch: shows that everything runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="the median of this many runs is reported")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, shared, own, output = (4, 32, 8, 4) if options.quick else (64, 512, 32, 32)
    model = random_qwen2(quick=options.quick)
    prompts = make_prompts(rows, shared, own, model.config.vocab_size)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{rows} prompts of {shared} shared + {own} own tokens, {output} new tokens; Qwen2 of {size:.0f} M parameters,"
    )
    print(f"fp32, {options.threads} threads, {platform.machine()}, torch {torch.__version__},", end=" ")
    print(f"transformers {transformers.__version__}\n")
    print("| run | seconds | prompt tokens computed | new tokens/s | ratio |\n| --- | ---: | ---: | ---: | ---: |")

    def decode(engine: Engine) -> None:
        requests = [Request(row, ids, max_tokens=output, ignore_eos=True) for row, ids in enumerate(prompts)]
        assert all(len(answer.token_ids) == output for answer in engine.generate(requests))

    def choose(engine: Engine) -> None:
        requests = [Request(row, ids, choices=[[5], [6]]) for row, ids in enumerate(prompts)]
        assert all(answer.choice_index is not None for answer in engine.generate(requests))

    def one_token(engine: Engine) -> None:
        requests = [Request(row, ids, max_tokens=1) for row, ids in enumerate(prompts)]
        assert all(len(answer.token_ids) == 1 for answer in engine.generate(requests))

    def run(name: str, work: Callable[[Engine], None], new_tokens: int, base: float | None, **switches: bool) -> float:
        def work_cold() -> None:
            engine.clear_cache()
            work(engine)

        with Engine(model, **switches) as engine:
            work(engine)  # warm-up
            before = engine.stats.snapshot()
            seconds = median(work_cold, options.repeat)
            computed = engine.stats.difference(before).computed_tokens // options.repeat
        report(name, seconds, computed, new_tokens, base)
        return seconds

    total = rows * output
    padded = median(lambda: generate_padded(model, prompts, output), options.repeat)
    report("transformers.generate, one padded batch", padded, rows * (shared + own), total, padded)
    run("engine", decode, total, padded)
    run("engine, cascade=False", decode, total, padded, cascade=False)
    run("engine, share_in_step=False", decode, total, padded, share_in_step=False)
    run("engine, prefix_sharing=False", decode, total, padded, prefix_sharing=False)
    first = run("one token, prefix_sharing=False", one_token, rows, None, prefix_sharing=False)
    run("one token", one_token, rows, first)
    run("choice of two labels", choose, rows, first)


def random_qwen2(*, quick: bool) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=600,
        hidden_size=64 if quick else 512,
        intermediate_size=128 if quick else 1408,
        num_hidden_layers=2 if quick else 8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


def make_prompts(rows: int, shared: int, own: int, vocab: int) -> list[np.ndarray]:
    """Own parts start with different tokens, so exactly `shared` tokens are shared."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(rows, vocab, shared)
    return [np.concatenate([beginning, [row], rng.integers(rows, vocab, own - 1)]) for row in range(rows)]


@torch.inference_mode()
def generate_padded(model: transformers.PreTrainedModel, prompts: list[np.ndarray], output: int) -> None:
    ids = torch.tensor(np.stack(prompts))
    options = {"max_new_tokens": output, "min_new_tokens": output, "do_sample": False, "pad_token_id": 0}
    assert model.generate(ids, attention_mask=torch.ones_like(ids), **options).shape[1] == ids.shape[1] + output


def median(work: Callable[[], None], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def report(name: str, seconds: float, computed: int, new_tokens: int, base: float | None) -> None:
    ratio = 1.0 if base is None else base / seconds
    print(f"| {name} | {seconds:.2f} | {computed} | {new_tokens / seconds:.0f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
