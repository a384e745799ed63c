"""Train the demo model from scratch on generated rows: `python examples/demo_model/train.py --out FOLDER`.

One process, one seed, CPU. The curriculum is labels and yes/no before copying, short rows before long ones; positions
skip ahead at random places, so that prompts much longer than the training rows keep working.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from guidance import Guidance
from rows import Batch, make_batches
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from vocabulary import CHAT_TEMPLATE, train_tokenizer


def main() -> None:
    """Train, print the losses as it goes, and save the folder every so many steps."""
    options = _options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    started = time.time()
    tokenizer, model = start(options)
    guidance = Guidance(model)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizers = make_optimizers(model, guidance, options.learning_rate)
    first, last, decay_from = options.first_step, options.steps, options.decay_from or options.steps * 2 // 3
    seen = 0
    sums: dict[str, list[float]] = {}
    batches = make_batches(tokenizer, options.seed, first, last, options.batch_tokens)
    for step, batch in enumerate(batches, first):
        if step >= last:
            break
        if time.time() - started > options.minutes * 42 and step < decay_from:
            # out of time: decay now; these two numbers as --steps and --decay-from repeat the run
            last, decay_from = step + max(1, (step - first) * 3 // 7), step
            print(f"decay from step {decay_from} to {last}", flush=True)
        rate = min((step - first + 1) / 30, 1.0)
        if step >= decay_from:
            rate = min(rate, max(0.02, (last - step) / (last - decay_from)))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, per_row = losses(model, batch, options.text_loss)
            for name, value in guidance(batch).items():
                loss = loss + options.guidance * value
                sums.setdefault(f"guidance: {name}", []).append(value.item())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += batch.token_ids.numel()
        for task, value in zip(batch.tasks, per_row.tolist()):
            sums.setdefault(task, []).append(value)
        if step % 50 == 49 or step + 1 == last:
            seconds = time.time() - started
            means = "  ".join(
                f"{name.split(': ')[1][:9]} {sum(sums[name]) / len(sums[name]):.3f}" for name in sorted(sums)
            )
            print(
                f"step {step + 1} {seconds:.0f} s {seen / seconds:.0f} tok/s rate {rate:.2f} loss | {means}", flush=True
            )
            sums.clear()
            record = {"step": step + 1, "decay_from": decay_from, "seconds": round(seconds), "tokens": seen}
            save(model, tokenizer, options.out, record)


def start(options: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, LlamaForCausalLM]:
    """A new tokenizer and model, or those of `--resume`."""
    if options.resume:
        tokenizer = AutoTokenizer.from_pretrained(options.resume)
        model = LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(options.vocabulary, options.seed)
        model = LlamaForCausalLM(model_config(tokenizer, options.layers, options.hidden))
    # faster than the fused kernel for rows of a hundred tokens, and it shows its weights to Guidance
    model.set_attn_implementation("eager")
    return tokenizer, model.train()


def model_config(tokenizer: PreTrainedTokenizerBase, layers: int, hidden: int) -> LlamaConfig:
    """A small Llama: heads of 32, grouped keys and values, tied embeddings, a slow rotary base for long prompts."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=(hidden * 8 // 3 + 63) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_optimizers(model: nn.Module, guidance: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding, the norms and the probes."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    others += list(guidance.parameters())
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=learning_rate * 0.3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def losses(model: LlamaForCausalLM, batch: Batch, text_loss: float) -> tuple[Tensor, Tensor]:
    """The loss to learn from, and each row's mean loss over its answer [rows]."""
    hidden = forward(model, batch)[:, :-1]
    targets = batch.token_ids[:, 1:]
    answer = batch.is_answer[:, 1:]
    rows, _ = answer.nonzero(as_tuple=True)
    each = nn.functional.cross_entropy(model.lm_head(hidden[answer]).float(), targets[answer], reduction="none")
    per_row = torch.zeros(len(targets)).index_add(0, rows, each) / answer.sum(1)
    loss = per_row.mean()
    if text_loss:
        sampled = batch.is_text[:, 1:] & (torch.rand(targets.shape) < 0.2)
        loss = loss + text_loss * nn.functional.cross_entropy(model.lm_head(hidden[sampled]).float(), targets[sampled])
    return loss, per_row.detach()


def forward(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Hidden states [rows, tokens, hidden]; padding is on the right, where causal attention does not look."""
    inner = model.model
    hidden = inner.embed_tokens(batch.token_ids)
    rotary = inner.rotary_emb(hidden, batch.positions)
    future = torch.full((hidden.shape[1], hidden.shape[1]), -1e9, dtype=torch.bfloat16).triu(1)
    for layer in inner.layers:
        hidden = layer(hidden, attention_mask=future[None, None], position_embeddings=rotary)
    return inner.norm(hidden)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, record: dict[str, object]) -> None:
    """Write an ordinary Hugging Face folder in bfloat16, and beside it how far the training was."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({name: value.to(torch.bfloat16) for name, value in model.state_dict().items()})
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=64
    )
    half.save_pretrained(folder)
    config_file = folder / "config.json"  # small enough to be run in float32, with the same answers on every machine
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    settings_file = folder / "tokenizer_config.json"
    settings = {**json.loads(settings_file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings = {key: value for key, value in settings.items() if key not in ("backend", "is_local")}
    settings_file.write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "training.json").write_text(json.dumps(record) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--decay-from", type=int, help="step at which the learning rate begins to fall; two thirds")
    parser.add_argument("--minutes", type=float, default=170.0, help="start the decay early, to end in about this time")
    parser.add_argument("--resume", type=Path, help="folder to start from, at --first-step")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=0.012)
    parser.add_argument("--text-loss", type=float, default=0.05, help="weight of the loss on the fields' text")
    parser.add_argument("--guidance", type=float, default=0.2, help="weight of each auxiliary loss")
    return parser.parse_args()


if __name__ == "__main__":
    main()
