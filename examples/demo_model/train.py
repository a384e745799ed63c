"""Train the demo model from scratch on generated rows: `python examples/demo_model/train.py --out FOLDER`.

One process, one seed, CPU. The curriculum is labels and yes/no before copying, short rows before long ones; positions
skip ahead at random places, so that prompts much longer than the training rows keep working.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tasks import TASKS, make_example
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vocabulary import CHAT_TEMPLATE, train_tokenizer

#: until this step, weights of TASKS in their order, lengths of rows
CURRICULUM = (
    (150, (5, 0, 0, 1, 3, 0, 0, 0), (0.0,)),
    (300, (4, 2, 0, 2, 3, 1, 0, 0), (0.0,)),
    (500, (3, 2, 2, 2, 3, 2, 2, 2), (0.0,)),
    (800, (2, 1, 2, 2, 2, 2, 2, 9), (0.0, 0.0, 0.3, 0.6)),
    (1200, (2, 1, 2, 2, 2, 2, 2, 12), (0.3, 0.6, 1.0)),
    (10**9, (2, 1, 2, 2, 2, 2, 2, 12), (0.3, 0.6, 1.0) * 16 + (1.6, 1.6, 2.5, 2.5, 4.0, 8.0)),
)

#: task, token ids, where the fields start, where the answer starts, where a copied answer stands in the fields or -1
Row = tuple[str, list[int], int, int, int]


def main() -> None:
    """Train, print the losses and the held-out accuracy as it goes, and save the folder every few minutes."""
    options = _options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    started = time.time()
    if options.resume:
        tokenizer = AutoTokenizer.from_pretrained(options.resume)
    else:
        tokenizer = train_tokenizer(options.vocabulary, options.seed)
    model = LlamaForCausalLM(model_config(tokenizer, options.layers, options.hidden))
    if options.resume:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32).state_dict())
    guide = AttentionGuide(model) if options.guidance else None
    model.set_attn_implementation("eager")  # faster than the fused kernel for rows of a hundred tokens
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {time.time() - started:.0f} s for the tokenizer",
        flush=True,
    )
    optimizers = make_optimizers(model, options.learning_rate)
    batches = make_batches(tokenizer, options.seed, options.first_step, options.steps, options.batch_tokens)
    sums: dict[str, list[float]] = {}
    seen = 0
    steps, decay_from = options.steps, options.decay_from or options.steps * 2 // 3
    for step, batch in enumerate(batches, options.first_step):
        if step >= min(steps, options.stop):
            break
        if time.time() - started > options.minutes * 42 and step < decay_from:
            # out of time: decay now; these two numbers as --steps and --decay-from repeat the run
            steps, decay_from = step + (step - options.first_step) * 3 // 7, step
            print(f"decay from step {decay_from} to {steps}", flush=True)
        rate = min(schedule(step, decay_from, steps), (step - options.first_step + 1) / 30)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, per_row = losses(model, batch, options.text_loss, options.length_power)
            if guide:
                guided = guide.loss(batch)
                loss = loss + options.guidance * guided
                sums.setdefault("x: guide", []).append(guided.item())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += batch.token_ids.numel()
        for task, value in zip(batch.tasks, per_row.tolist()):
            sums.setdefault(task, []).append(value)
        if step % 50 == 49 or step + 1 == steps:
            means = "  ".join(
                f"{task.split(': ')[1][:9]} {sum(sums[task]) / len(sums[task]):.3f}"
                for task in [*TASKS, "x: guide"]
                if task in sums
            )
            seconds = time.time() - started
            print(
                f"step {step + 1} {seconds:.0f} s {seen / seconds:.0f} tok/s rate {rate:.2f} loss | {means}", flush=True
            )
            sums.clear()
        if step % options.save_every == options.save_every - 1 or step + 1 == steps:
            save(
                model,
                tokenizer,
                options.out,
                {
                    **vars(options),
                    "decay_from": decay_from,
                    "steps": step + 1,
                    "seconds": round(time.time() - started),
                    "tokens": seen,
                },
            )


def model_config(tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int) -> LlamaConfig:
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


def make_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=learning_rate * 0.3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def schedule(step: int, decay_from: int, steps: int) -> float:
    """Warm-up over 30 steps, flat, then linear to a fiftieth."""
    return min((step + 1) / 30, 1.0, max(0.02, (steps - step) / (steps - decay_from)))


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Padded rows: answers are what is learnt, the text before them is learnt lightly."""

    token_ids: Tensor  # [rows, tokens]
    positions: Tensor  # [rows, tokens]
    is_answer: Tensor  # [rows, tokens] bool: this token is part of the answer
    is_text: Tensor  # [rows, tokens] bool: this token is part of the fields
    tasks: list[str]
    sources: list[tuple[int, int, int]]  # (row, answer token, token that it is copied from)
    names: list[tuple[int, int, int]]  # (row, first token of the copied value, last token of its name)


def make_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, steps: int, batch_tokens: int
) -> Iterator[Batch]:
    """`steps` batches of about `batch_tokens` tokens, each of rows of similar length."""
    rng = random.Random(f"train {seed}")
    waiting: dict[int, list[Row]] = {}
    quote = tokenizer.convert_tokens_to_ids('Ġ"')
    while step < steps:
        # rows wait until a batch of their padded length is full; few distinct shapes keep the matrix kernels cached
        for row in encode(tokenizer, rng, step, count=500):
            width = -(-len(row[1]) // 16) * 16
            waiting.setdefault(width, []).append(row)
            if len(waiting[width]) * width > batch_tokens - width:
                yield _padded(waiting.pop(width), width, rng, tokenizer.pad_token_id, quote)
                step += 1
                if step == steps:
                    return


def encode(tokenizer: PreTrainedTokenizerFast, rng: random.Random, step: int, count: int) -> list[Row]:
    """Random rows for this stage of the training: see Row."""
    weights, lengths = stage(step)
    examples = [make_example(rng, task, length=rng.choice(lengths)) for task in rng.choices(TASKS, weights, k=count)]
    texts = [f"<|user|>{example.content}<|end|><|assistant|>" for example in examples]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    answers = tokenizer([f"{example.answer}<|end|>" for example in examples], add_special_tokens=False)["input_ids"]
    newline = tokenizer.encode("{\n", add_special_tokens=False)[-1]
    bare = bare_tokens(tokenizer)
    rows = []
    for example, prompt, answer in zip(examples, prompts, answers):
        start = prompt.index(newline) if newline in prompt else 0
        source = copied_from(prompt, answer[:-1], bare) if example.choices is None else -1
        rows.append((example.task, prompt + answer, start, len(prompt), source))
    return rows


def stage(step: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The curriculum: weights of TASKS and lengths of rows at this step."""
    _, weights, lengths = next(entry for entry in CURRICULUM if step < entry[0])
    return weights, lengths


def _padded(rows: list[Row], longest: int, rng: random.Random, pad: int, quote: int) -> Batch:
    token_ids = torch.full((len(rows), longest), pad)
    positions = torch.arange(longest).repeat(len(rows), 1)
    is_answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    is_text = torch.zeros(len(rows), longest, dtype=torch.bool)
    sources, names = [], []
    for place, (_, ids, text, answer, source) in enumerate(rows):
        if source >= 0:
            sources += [(place, answer + step, source + step) for step in range(len(ids) - answer)]
            names.append((place, source, source - 3 if ids[source - 1] == quote else source - 2))
        token_ids[place, : len(ids)] = torch.tensor(ids)
        is_answer[place, answer : len(ids)] = True
        is_text[place, text:answer] = True
        if rng.random() < 0.4:
            for _ in range(rng.choice((1, 1, 2, 4))):
                positions[place, rng.randrange(1, longest) :] += int(math.exp(rng.uniform(0.0, math.log(3500.0))))
    return Batch(token_ids, positions, is_answer, is_text, [row[0] for row in rows], sources, names)


@cache
def bare_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, int]:
    """Token -> the same token without the space before it, where there is one."""
    vocabulary = tokenizer.get_vocab()
    return {number: vocabulary.get(token.removeprefix("Ġ"), number) for token, number in vocabulary.items()}


def copied_from(prompt: list[int], answer: list[int], bare: dict[int, int]) -> int:
    """Where in the prompt the answer stands as a whole value, -1 where it does not (numbers have a space before them)."""
    bare_prompt = [bare[token] for token in prompt]
    bare_answer = [bare[token] for token in answer]
    for start in range(len(prompt) - len(answer) - 1, 3, -1):
        if bare_prompt[start] == bare_answer[0] and bare_prompt[start : start + len(answer)] == bare_answer:
            return start
    return -1


class AttentionGuide:
    """Shows two heads of the model where to look, which makes copying form in minutes instead of hours.

    A head of the first layer looks at the token before; one of the second looks from a value at its field's name; one of
    the third looks from the end of the answer so far at the token to be copied next.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.weights: list[Tensor] = []
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(lambda _module, _inputs, output: self.weights.append(output[1]))

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log attention of the guided heads in the forward pass just made."""
        first, second, third, *_ = self.weights
        parts = [first[:, 0].diagonal(-1, 1, 2).float()]
        for weights, places, back in ((second, batch.names, 0), (third, batch.sources, 1)):
            if places:
                rows, queries, keys = torch.tensor(places).T
                parts.append(weights[rows, 0, queries - back, keys].float())
        self.weights.clear()
        return torch.stack([-part.clamp(min=1e-9).log().mean() for part in parts]).mean()


# --- model ------------------------------------------------------------------------------------------------------------


def losses(model: LlamaForCausalLM, batch: Batch, text_loss: float, length_power: float) -> tuple[Tensor, Tensor]:
    """The loss to learn from, and each row's mean loss over its answer [rows]."""
    hidden = forward(model, batch)[:, :-1]
    targets = batch.token_ids[:, 1:]
    answer = batch.is_answer[:, 1:]
    rows, _ = answer.nonzero(as_tuple=True)
    each = nn.functional.cross_entropy(model.lm_head(hidden[answer]).float(), targets[answer], reduction="none")
    counts = answer.sum(1).float()
    per_row = torch.zeros(len(counts)).index_add(0, rows, each) / counts
    weights = counts**length_power
    loss = (per_row * weights).sum() / weights.sum()
    if text_loss:
        sampled = batch.is_text[:, 1:] & (torch.rand(targets.shape) < 0.2)
        loss = loss + text_loss * nn.functional.cross_entropy(model.lm_head(hidden[sampled]).float(), targets[sampled])
    return loss, per_row.detach()


def forward(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Hidden states [rows, tokens, hidden]; padding is on the right, so that causal attention needs no mask."""
    inner = model.model
    hidden = inner.embed_tokens(batch.token_ids)
    rotary = inner.rotary_emb(hidden, batch.positions)
    future = torch.full((hidden.shape[1], hidden.shape[1]), -1e9, dtype=torch.bfloat16).triu(1)
    for layer in inner.layers:
        hidden = layer(hidden, attention_mask=future[None, None], position_embeddings=rotary)
    return inner.norm(hidden)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, record: dict[str, object]) -> None:
    """Write an ordinary Hugging Face folder in bfloat16, and beside it what the training was."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({name: value.to(torch.bfloat16) for name, value in model.state_dict().items()})
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=64
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    settings_file = folder / "tokenizer_config.json"
    settings = {
        **json.loads(settings_file.read_text()),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    settings.pop("backend", None)
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    record = {key: value for key, value in record.items() if key not in ("out", "resume", "save_every")}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument(
        "--decay-from",
        type=int,
        help="step at which the learning rate begins to fall; two thirds of the steps when not given",
    )
    parser.add_argument("--minutes", type=float, default=180.0, help="start the decay early, to end in about this time")
    parser.add_argument("--resume", type=Path, help="folder to start from, at --first-step")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--stop", type=int, default=10**9, help="end after this step, wherever the schedule is")
    parser.add_argument("--guidance", type=float, default=0.3, help="weight of AttentionGuide's loss")
    parser.add_argument(
        "--length-power", type=float, default=0.0, help="weigh a row by this power of its answer's length"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--text-loss", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
