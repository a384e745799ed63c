"""Sections of gpu.py about the engine's speed: whole workloads on random models, against transformers."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from gpu_parity import switches

from llmsql.gpu_backend import Engine, Request

if TYPE_CHECKING:
    from gpu import Report, Settings

Config = Callable[[], Any]
MODELS: dict[str, Config] = {
    "tiny": lambda: transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    "135m": lambda: transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "500m": lambda: transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "1.5b": lambda: transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "7b": lambda: transformers.Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: list[np.ndarray]
    output: int  # tokens; with `choices`, one by transformers
    choices: bool = False

    def requests(self) -> list[Request]:
        if self.choices:
            return [Request(i, prompt, choices=[[5], [6], [7], [8]]) for i, prompt in enumerate(self.prompts)]
        return [Request(i, p, max_tokens=self.output, ignore_eos=True) for i, p in enumerate(self.prompts)]


def workloads(vocab: int, *, dry_run: bool) -> list[Workload]:
    """All prompts of a workload are of one length, which suits padded `generate` best."""
    if dry_run:
        return [Workload("3 x (12 shared + 2) -> 2", tree(vocab, [(1, 12), (3, 2)]), 2)]
    shared = tree(vocab, [(1, 512), (64, 32)])
    return [
        Workload("64 x (512 shared + 32) -> 32", shared, 32),
        Workload("8 groups x 8 rows, 512 + 32 -> 32", tree(vocab, [(8, 512), (8, 32)]), 32),
        Workload("5 levels, 64 rows of 544 -> 32", tree(vocab, [(1, 160), (2, 128), (2, 96), (4, 96), (4, 64)]), 32),
        Workload("nothing shared, 64 x 544 -> 32", tree(vocab, [(64, 544)]), 32),
        Workload("long outputs, 64 x (64 shared + 16) -> 256", tree(vocab, [(1, 64), (64, 16)]), 256),
        Workload("choice of 4, 64 x (512 shared + 32)", shared, 1, choices=True),
    ]


def tree(vocab: int, levels: list[tuple[int, int]]) -> list[np.ndarray]:
    """Prompts of a tree: (children of each node, tokens of each child) per level; siblings differ at once."""
    rng = np.random.default_rng(0)
    rows = [np.zeros(0, np.int64)]
    for children, tokens in levels:
        rows = [
            np.concatenate([row, [child], rng.integers(0, vocab, tokens - 1)])
            for row in rows
            for child in range(children)
        ]
    return rows


@dataclass
class Work:
    """What a run computes, counted from its batches."""

    steps: int = 0
    tokens: int = 0
    logit_rows: int = 0
    pairs: int = 0  # of query and visible key
    distinct_keys: int = 0  # keys of all steps, a shared one once per step

    def add(self, batch: Any) -> None:
        self.steps += 1
        self.tokens += len(batch.token_ids)
        self.logit_rows += len(batch.logit_index)
        self.pairs += int(batch.positions.astype(np.int64).sum()) + len(batch.positions)
        self.distinct_keys += int(batch.table.node_len.sum())

    def flops(self, model: Any) -> float:
        layers, head = parameters(model)
        attention = 4 * model.config.num_hidden_layers * model.config.hidden_size * self.pairs
        return 2 * layers * self.tokens + 2 * head * self.logit_rows + attention

    def bytes(self, model: Any, kv_bytes_per_token: int) -> float:
        return self.steps * sum(parameters(model)) * model.dtype.itemsize + self.distinct_keys * kv_bytes_per_token


def parameters(model: Any) -> tuple[int, int]:
    """Parameters of the layers, and of the head (which may be the embeddings)."""
    layers = sum(p.numel() for key, p in model.named_parameters() if "embed" not in key and "lm_head" not in key)
    return layers, model.config.vocab_size * model.config.hidden_size


def run_workloads(report: Report, settings: Settings) -> None:
    """Each workload by padded `generate` and by the engine; the first one also with each optimisation off."""
    for name in settings.models:
        with random_model(name, settings) as (model, folder):
            size = sum(parameter.numel() for parameter in model.parameters())
            report.line(f"\n### {name}: {size / 1e6:.0f} M parameters, {model.dtype}")
            works = workloads(model.config.vocab_size, dry_run=settings.dry_run)
            results: dict[str, dict[str, Result]] = {work.name: {} for work in works}
            for work in works:
                if settings.time_left():
                    seconds = best_seconds(lambda: generate_padded(model, work), settings)  # noqa: B023
                    results[work.name]["transformers.generate"] = Result(seconds)
            runs = list(switches().items())[: 3 if settings.dry_run else None]
            for number, (run, options) in enumerate(runs):
                if settings.time_left():
                    try:
                        run_engine(run, folder, works if number < 2 else works[:1], options, results, model, settings)
                    except Exception as error:
                        report.fail(f"{name}, {run}: {error!r}")
            write_table(report, name, works, results)
            report.save()


@dataclass(frozen=True)
class Result:
    seconds: float
    tokens: int | None = None  # that went through the model
    flops: float | None = None  # fractions of the measured peaks
    bytes: float | None = None


def run_engine(
    run: str,
    folder: str,
    works: list[Workload],
    options: dict[str, Any],
    results: dict[str, dict[str, Result]],
    model: Any,
    settings: Settings,
) -> None:
    """Time the workloads, each with an empty prefix cache, and add them to the results."""
    if settings.dry_run:
        options = {"kernels": "triton"} | options
    dtype = "float32" if settings.dry_run else "bfloat16"
    with Engine(folder, device=settings.device, dtype=dtype, **options) as engine:
        if engine._runner.decoder is None and options.get("fused", True):
            raise RuntimeError("the fused decoder was given up at load")
        for work in works:
            if not settings.time_left():
                return

            def once() -> None:
                engine.clear_cache()
                done = list(engine.generate(work.requests()))  # noqa: B023
                assert all(one.error is None for one in done), next(one.error for one in done if one.error)
                assert work.choices or all(len(one.token_ids) == work.output for one in done)  # noqa: B023

            counted = Work()
            forward = engine._runner.forward

            def counting(batch: Any) -> torch.Tensor:
                counted.add(batch)  # noqa: B023
                return forward(batch)  # noqa: B023

            engine._runner.forward = counting
            once()  # compiles and warms up
            del engine._runner.forward
            seconds = best_seconds(once, settings)
            engine.check()
            results[work.name][run] = Result(
                seconds,
                counted.tokens,
                counted.flops(model) / seconds / settings.peak_flops,
                counted.bytes(model, engine._runner.kv_bytes_per_token) / seconds / settings.peak_bytes,
            )


def write_table(report: Report, model: str, works: list[Workload], results: dict[str, dict[str, Result]]) -> None:
    report.line(
        "\nflops: of the products with weights and of attention, over time and measured peak. bytes: the weights once"
        " per step, distinct keys and values once per step, over time and measured copy. ratio: to generate."
    )
    report.heading("workload | run | #seconds | #new tokens/s | #tokens run | #flops / peak | #bytes / copy | #ratio")
    for work in works:
        new_tokens = len(work.prompts) * work.output
        base = results[work.name].get("transformers.generate")
        for run, result in results[work.name].items():
            ratio = base.seconds / result.seconds if base else None
            numbers = [
                result.tokens,
                *(x and f"{x:.3f}" for x in (result.flops, result.bytes)),
                ratio and f"{ratio:.2f}",
            ]
            shown = ["-" if number is None else number for number in numbers]
            report.row(work.name, run, f"{result.seconds:.3f}", f"{new_tokens / result.seconds:.0f}", *shown)
            key = f"{model}, {work.name}, {run}"
            values = {**vars(result), "new tokens/s": new_tokens / result.seconds, "ratio": ratio}
            report.results.setdefault("workloads", {})[key] = values
        if not results[work.name]:
            report.row(work.name, "left out: no time", *["-"] * 6)


@contextmanager
def random_model(name: str, settings: Settings) -> Iterator[tuple[Any, str]]:
    """A model of random weights on the device, and a folder with the same."""
    dtype = torch.float32 if settings.dry_run else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(settings.device):
        model = transformers.AutoModelForCausalLM.from_config(MODELS[name](), dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            yield model, folder
        finally:
            del model
            release(settings)


def release(settings: Settings) -> None:
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


@torch.inference_mode()
def generate_padded(model: Any, work: Workload) -> None:
    ids = torch.tensor(np.stack(work.prompts), device=model.device)
    count = {"max_new_tokens": work.output, "min_new_tokens": work.output}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **count)
    assert out.shape[1] == ids.shape[1] + work.output


def best_seconds(call: Callable[[], None], settings: Settings) -> float:
    """The shorter of two calls: what goes wrong on a machine only adds time. One call in a dry run."""
    seconds = []
    for _ in range(1 if settings.dry_run else 2):
        synchronize(settings)
        begin = time.perf_counter()
        call()
        synchronize(settings)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def synchronize(settings: Settings) -> None:
    if settings.device.type == "cuda":
        torch.cuda.synchronize(settings.device)


def run_generate_batch(report: Report, settings: Settings) -> None:
    """transformers' continuous batching on the first workload; last, because it may not run or not end."""
    if settings.dry_run:
        report.line("\nNot in a dry run.")
        return
    report.heading("model | workload | #seconds | #new tokens/s")
    for name in settings.models:
        if not settings.time_left():
            report.row(name, "left out: no time", "-", "-")
            continue
        with random_model(name, settings) as (model, _):
            work = workloads(model.config.vocab_size, dry_run=False)[0]
            seconds = with_limit(lambda: generate_batch(model, work, settings), 60)  # noqa: B023
            if isinstance(seconds, str):
                report.row(name, f"{work.name}: {seconds}", "-", "-")
                return
            new_tokens = len(work.prompts) * work.output
            report.row(name, work.name, f"{seconds:.3f}", f"{new_tokens / seconds:.0f}")
            key = f"{name}, {work.name}, transformers.generate_batch"
            report.results.setdefault("workloads", {})[key] = {"seconds": seconds, "new tokens/s": new_tokens / seconds}


def generate_batch(model: Any, work: Workload, settings: Settings) -> float:
    options = transformers.GenerationConfig(
        max_new_tokens=work.output, min_new_tokens=work.output, do_sample=False, pad_token_id=0, eos_token_id=-1
    )
    inputs = [prompt.tolist() for prompt in work.prompts]
    return best_seconds(lambda: check_batch(model.generate_batch(inputs, generation_config=options), work), settings)


def check_batch(outputs: dict[str, Any], work: Workload) -> None:
    lengths = [len(output.generated_tokens) for output in outputs.values()]
    assert lengths == [work.output] * len(work.prompts), f"generate_batch gave {lengths} tokens"


def with_limit(call: Callable[[], float], limit: float) -> float | str:
    """What the call returns, or why it does not; it goes on in its thread after `limit` seconds."""
    results: list[float | str] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(f"does not run: {type(error).__name__}: {str(error)[:200]}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return results[0] if results else f"not done after {limit:.0f} s"
