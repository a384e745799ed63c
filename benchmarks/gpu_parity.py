"""Section of gpu.py about the engine's answers: tokens and log-probabilities against transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engine_models import CONFIGS, generate_one, tiny_model, tree_prompts

from llmsql.gpu_backend import Engine, Request, attention_kernels

if TYPE_CHECKING:
    from gpu import Report, Settings

SWITCHES: dict[str, dict[str, Any]] = {
    "engine": {},
    "engine, cascade=False": {"cascade": False},
    "engine, split_keys=False": {"split_keys": False},
    "engine, kernels='torch'": {"kernels": "torch"},
    "engine, fused=False": {"fused": False},
    "engine, share_in_step=False": {"share_in_step": False},
    "engine, prefix_sharing=False": {"prefix_sharing": False},
}
"""Everything on, then each optimisation off; those that this engine does not have are left out."""
FUSED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")
"""Families that the fused decoder must run; it steps back where its logits differ from transformers' at load."""


def switches() -> dict[str, dict[str, Any]]:
    known = inspect.signature(Engine).parameters
    return {name: options for name, options in SWITCHES.items() if set(options) <= set(known)}


def check_parity(report: Report, settings: Settings) -> None:
    """Greedy fp32 tokens equal `generate` on each prompt alone, with every switch; 16-bit logits are as close."""
    families = ["llama"] if settings.dry_run else list(CONFIGS)
    prompts, output = ([tree_prompts(3)[0][:9]], 2) if settings.dry_run else (tree_prompts(14), 8)
    kernels = "triton" if settings.dry_run else "auto"
    # The prompts are short: without this no shared part of them would be worth a cascade.
    usual = attention_kernels.LAUNCH_BYTES, attention_kernels.PROGRAM_KEYS
    attention_kernels.LAUNCH_BYTES, attention_kernels.PROGRAM_KEYS = 0, 1
    try:
        _check_tokens(report, settings, families, prompts, output, kernels)
        if not settings.dry_run:
            _check_log_probs(report, settings, prompts)
    finally:
        attention_kernels.LAUNCH_BYTES, attention_kernels.PROGRAM_KEYS = usual


def _check_tokens(
    report: Report, settings: Settings, families: list[str], prompts: list[np.ndarray], output: int, kernels: str
) -> None:
    report.heading("family | run | decoder | #requests | #with generate's tokens")
    for family in families:
        model = tiny_model(family).to(settings.device)
        expected = [generate_one(model, prompt, output) for prompt in prompts]
        runs = switches() if family == "llama" and not settings.dry_run else {"engine": {}}
        for run, options in runs.items():
            requests = [Request(i, prompt, max_tokens=output) for i, prompt in enumerate(prompts)]
            options = {"kernels": kernels, "device": settings.device} | options
            with Engine(model, block_size=4, max_batch_tokens=64, **options) as engine:
                decoder = "modules" if engine._runner.decoder is None else "fused"
                found = {done.id: (list(done.token_ids), done.error) for done in engine.generate(requests)}
                engine.check()
            equal = sum(found[i] == (tokens, None) for i, tokens in enumerate(expected))
            report.row(family, run, decoder, len(prompts), equal)
            if family in FUSED and decoder != "fused" and options.get("fused", True):
                report.fail(f"{family}, {run}: the fused decoder was given up at load")
            if equal < len(prompts):
                report.fail(f"{family}, {run}: {len(prompts) - equal} of {len(prompts)} rows differ from generate")
        model.cpu()


def _check_log_probs(report: Report, settings: Settings, prompts: list[np.ndarray]) -> None:
    report.line("\nLog-probabilities in bf16: largest difference to fp32, of transformers and of the engine.")
    report.heading("family | #transformers | #engine")
    for family in FUSED:
        model = tiny_model(family)
        exact = log_probs_of(model.to(settings.device), prompts)
        half = tiny_model(family).to(settings.device, torch.bfloat16)
        theirs = (log_probs_of(half, prompts) - exact).abs().max().item()
        ours = (engine_log_probs(half, prompts, exact.shape[1]) - exact.cpu()).abs().max().item()
        tiny_model.cache_clear()  # it was changed to bf16 in place
        report.row(family, f"{theirs:.2e}", f"{ours:.2e}")
        report.results.setdefault("log-prob errors", {})[family] = {"transformers": theirs, "engine": ours}
        if not ours <= 2 * theirs + 0.05:
            report.fail(f"{family} in bf16: log-probabilities are off by {ours:.2e}, transformers' by {theirs:.2e}")


@torch.inference_mode()
def log_probs_of(model: Any, prompts: list[np.ndarray]) -> torch.Tensor:
    """[prompts, vocab] after each prompt, one prompt at a time."""
    rows = [model(torch.tensor(prompt, device=model.device)[None]).logits[0, -1] for prompt in prompts]
    return torch.log_softmax(torch.stack(rows).float(), dim=-1)


def engine_log_probs(model: Any, prompts: list[np.ndarray], vocab: int) -> torch.Tensor:
    """The same by the engine: every token of the vocabulary is a choice."""
    choices = [[token] for token in range(vocab)]
    with Engine(model, device=model.device) as engine:
        done = {one.id: one for one in engine.generate(Request(i, p, choices=choices) for i, p in enumerate(prompts))}
    assert all(one.error is None for one in done.values()), [one.error for one in done.values()]
    return torch.tensor([done[i].log_probs for i in range(len(prompts))])
