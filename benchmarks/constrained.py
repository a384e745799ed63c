"""What constrained output costs, and what its optimisations save: forced tokens, and masks made beside the model.

    python benchmarks/constrained.py            # about two minutes on 2 cores
    python benchmarks/constrained.py --quick    # the same steps, tiny

Workload: rows that share a long beginning are turned into JSON of one schema, greedily, by a random Qwen2 with the demo
model's tokenizer. A random model fills every text up to its `maxLength`, so the share of forced tokens is the schema's.
All runs take turns in the same process; a ratio is to the line of the same table that is marked 1.0.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the engine has it where it is imported before torch

import argparse
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers

from llmsql.demo import MODEL_FOLDER
from llmsql.gpu_backend import Engine, Grammar, Request

SCHEMA = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "maxLength": 20},
        "category": {"enum": ["kitchen", "garden", "electronics", "clothing"]},
        "rating": {"type": "integer", "minimum": 1, "maximum": 5},
        "recommended": {"type": "boolean"},
        "complaint": {"type": "string", "maxLength": 40},
    },
    "required": ["product", "category", "rating", "recommended", "complaint"],
    "additionalProperties": False,
}
SWITCHES = {
    "neither": {"forced_tokens": False, "overlap_masks": False},
    "overlap_masks": {"forced_tokens": False, "overlap_masks": True},
    "forced_tokens": {"forced_tokens": True, "overlap_masks": False},
    "both": {"forced_tokens": True, "overlap_masks": True},
}
LABELS = ["excellent product", "terrible product"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and batch: shows that everything runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="turns; the median time of a run is reported")
    parser.add_argument("--vocab", type=int, default=32_768, help="rows of the model's embedding")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, shared, own = (3, 32, 8) if options.quick else (64, 512, 32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    model = random_qwen2(max(options.vocab, len(tokenizer)), tokenizer.eos_token_id, quick=options.quick)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{rows} prompts of {shared} shared + {own} own tokens; Qwen2 of {size:.0f} M parameters, {options.vocab} ids,"
    )
    print(f"fp32, {options.threads} threads, {platform.machine()}, torch {torch.__version__}\n")
    prompts = make_prompts(rows, shared, own, len(tokenizer))
    engines = {name: Engine(model, tokenizer=tokenizer, **switches) for name, switches in SWITCHES.items()}

    extract = {"grammar": Grammar.json_schema(SCHEMA), "max_tokens": 160}
    runs = {f"JSON, {name}": (engine, extract) for name, engine in engines.items()}
    measured = measure(runs, prompts, options.repeat)
    texts = {name: answers for name, (_, _, answers) in measured.items()}
    assert len(set(texts.values())) == 1, "a switch has changed an answer"
    report(measured, "JSON, neither")

    engine = engines["forced_tokens"]
    kinds: dict[str, tuple[Engine, dict[str, Any]]] = {
        "one token": (engine, {"max_tokens": 1}),
        "one of two choices, by the first token": (engine, {"choices": LABELS}),
        "one of two choices, by whole labels": (engine, {"choices": LABELS, "choice_scoring": "total"}),
        "one of two choices, as a grammar": (engine, {"grammar": Grammar.choices(LABELS)}),
    }
    report(measure(kinds, prompts, options.repeat), "one token")
    for each in engines.values():
        each.close()


Measured = dict[str, tuple[tuple[float, ...], Any, tuple[str, ...]]]


def measure(runs: dict[str, tuple[Engine, dict[str, Any]]], prompts: list[np.ndarray], repeat: int) -> Measured:
    """Median seconds (wall, CPU), counters and answers of runs that take turns; the first turn warms up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    last = {}
    for _ in range(1 + repeat):
        for name, (engine, options) in runs.items():
            engine.clear_cache()
            before, started, cpu_started = engine.stats.snapshot(), time.perf_counter(), time.process_time()
            requests = (Request(row, ids, **options) for row, ids in enumerate(prompts))
            answers = sorted(engine.generate(requests), key=lambda answer: int(str(answer.id)))
            seconds[name].append((time.perf_counter() - started, time.process_time() - cpu_started))
            assert all(answer.error is None for answer in answers)
            last[name] = engine.stats.difference(before), tuple(answer.text for answer in answers)
    medians = {name: tuple(map(statistics.median, zip(*times[1:]))) for name, times in seconds.items()}
    return {name: (medians[name], *last[name]) for name in runs}


def report(measured: Measured, base: str) -> None:
    print(
        "| run | seconds | ratio | CPU seconds | ratio | output tokens | forced | steps | tokens run | of it labels |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (seconds, done, _) in measured.items():
        times = " | ".join(f"{here:.2f} | {there / here:.2f}" for here, there in zip(seconds, measured[base][0]))
        counts = [done.output_tokens, done.forced_tokens, done.steps, done.step_tokens, done.label_tokens]
        print(f"| {name} | {times} | {' | '.join(map(str, counts))} |", flush=True)
    print()


def random_qwen2(vocab: int, eos: int, *, quick: bool) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        hidden_size=64 if quick else 512,
        intermediate_size=128 if quick else 1408,
        num_hidden_layers=2 if quick else 8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=eos,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


def make_prompts(rows: int, shared: int, own: int, vocab: int) -> list[np.ndarray]:
    """Own parts start with different tokens, so exactly `shared` tokens are shared."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(rows, vocab, shared)
    return [np.concatenate([beginning, [row], rng.integers(rows, vocab, own - 1)]) for row in range(rows)]


if __name__ == "__main__":
    main()
