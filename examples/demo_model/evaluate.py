"""Held-out accuracy of a demo model folder: `python examples/demo_model/evaluate.py [FOLDER]`.

Every question is a phrasing that training never saw (see `tasks.is_held_out`), every product and review is new (another
seed), fields stand in random order with random other fields around them. Choices are scored as
llmsql does it: the label with the highest probability, given that one of them is said. Copies must be exact.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tasks import TASKS, Example, make_example
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmsql.demo import MODEL_FOLDER


def main() -> None:
    """Print a table of accuracies, by task and length of rows; with `--real FILE`, agreement with real ratings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--rows", type=int, default=400, help="rows per task")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--real", type=Path, help="a Parquet file with product_title, description, text and rating")
    parser.add_argument("--real-rows", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.folder, options.dtype)
    if options.real:
        agreement(model, tokenizer, options.real, options.real_rows, options.seed)
        return
    print(f"share of right answers; {options.rows} short and {options.rows // 4} long rows each")
    print(f"{'task':<20} {'short rows':>10} {'long rows':>10}")
    for task in TASKS:
        short = held_out([task], options.rows, options.seed)
        long = held_out([task], options.rows // 4, options.seed, length=6.0)
        scores = [accuracy(model, tokenizer, examples) for examples in (short, long)]
        print(f"{task:<20} {scores[0]:>9.1%} {scores[1]:>10.1%}", flush=True)


def load(folder: Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The folder's model and tokenizer, by the Auto classes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def held_out(tasks: Sequence[str], rows: int, seed: int, length: float = 1.0) -> list[Example]:
    """Examples with held-out phrasings, the tasks in turn."""
    rng = random.Random(f"evaluate {seed}")
    return [make_example(rng, tasks[row % len(tasks)], held_out=True, length=length) for row in range(rows)]


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """Share of examples that are answered exactly."""
    right = [said == example.answer for said, example in zip(answers(model, tokenizer, examples), examples)]
    return sum(right) / len(right)


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch: int = 25
) -> list[str]:
    """The model's answers, rows of similar length together."""
    prompts = [prompt_ids(tokenizer, example.content) for example in examples]
    order = sorted(range(len(examples)), key=lambda row: len(prompts[row]))
    said = [""] * len(examples)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        chosen = [row for row in rows if examples[row].choices]
        for row, text in zip(
            chosen, choose(model, tokenizer, [(prompts[row], examples[row].choices or ()) for row in chosen])
        ):
            said[row] = text
        copied = [row for row in rows if not examples[row].choices]
        for row, text in zip(copied, generate(model, tokenizer, [prompts[row] for row in copied])):
            said[row] = text
    return said


def prompt_ids(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    """The prompt's tokens by the chat template."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[list[int], Sequence[str]]]
) -> list[str]:
    """The most probable label of each prompt; a label's probability is that of its tokens and the end of the turn."""
    rows, prompt_lengths, owners = [], [], []
    for number, (prompt, labels) in enumerate(asked):
        for label in labels:
            rows.append(prompt + tokenizer(label, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id])
            prompt_lengths.append(len(prompt))
            owners.append((number, label))
    if not rows:
        return []
    best: list[tuple[float, str]] = [(-float("inf"), "")] * len(asked)
    longest = max(map(len, rows))
    token_ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    hidden = model.model(token_ids).last_hidden_state  # padding is on the right: earlier tokens do not see it
    for place, (row, length, (number, label)) in enumerate(zip(rows, prompt_lengths, owners)):
        logits = model.lm_head(hidden[place, length - 1 : len(row) - 1]).float().log_softmax(-1)
        score = logits.gather(1, torch.tensor(row[length:])[:, None]).sum().item()
        best[number] = max(best[number], (score, label))
    return [label for _, label in best]


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]]) -> list[str]:
    """Greedy answers of up to 40 tokens."""
    if not prompts:
        return []
    longest = max(map(len, prompts))
    padded = [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    out: Tensor = model.generate(
        torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=40, do_sample=False
    )
    return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


def agreement(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, rows: int, seed: int) -> None:
    """Print how often "Is the review positive?" agrees with a rating of at least 4, on a sample of real reviews."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["product_title", "description", "text", "rating"]).to_pylist()
    rng = random.Random(f"real {seed}")
    low = [row for row in table if row["text"] and row["rating"] <= 3]
    high = [row for row in table if row["text"] and row["rating"] >= 4]
    shares = {}
    for name, group in (
        ("4 and 5 stars", high),
        ("1 to 3 stars", low),
        ("1 and 2 stars", [row for row in low if row["rating"] <= 2]),
    ):
        sample = rng.sample(group, min(len(group), rows // 2))
        examples = []
        for row in sample:
            names = [field for field in ("product_title", "description", "text") if row[field] is not None]
            rng.shuffle(names)
            fields = tuple((field, row[field]) for field in names)
            examples.append(
                Example("real", "Is the review positive?", ("Yes", "No"), fields, "Yes" if row["rating"] >= 4 else "No")
            )
        shares[name] = accuracy(model, tokenizer, examples)
        print(f"{name:<14} {shares[name]:>6.1%} of {len(examples)} as the rating says", flush=True)
    all_rows = (shares["4 and 5 stars"] * len(high) + shares["1 to 3 stars"] * len(low)) / (len(high) + len(low))
    print(f"whole table, by its share of ratings: {all_rows:.1%}; always Yes: {len(high) / (len(high) + len(low)):.1%}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
