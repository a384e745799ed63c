"""The demo's generated table, and the model that the package ships: a small, plain Hugging Face folder that answers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from llmsql.demo import MODEL_FOLDER
from llmsql.demo.grammar import Grammar
from llmsql.demo.reviews import TOPICS, reviews_table

EXAMPLES = Path(__file__).parent.parent / "examples" / "demo_model"
TRUTHS = ("is_positive", "mentions_delivery", "topic", "suitable_for_children")


@pytest.fixture(scope="module")
def evaluation():
    if not EXAMPLES.is_dir():
        pytest.skip(f"{EXAMPLES} is not part of this checkout")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import evaluate
        import tasks

        yield evaluate, tasks
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def loaded(evaluation):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield evaluation[0].load(MODEL_FOLDER)
    torch.set_num_threads(threads)


# --- the generated table


def test_table_is_the_same_for_a_seed():
    assert reviews_table(300, 3).equals(reviews_table(300, 3))
    assert not reviews_table(300, 3).equals(reviews_table(300, 4))


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_table_has_the_rows_asked_for(rows):
    assert reviews_table(rows).num_rows == rows


def test_table_repeats_like_reviews_joined_with_products():
    table = reviews_table(2000, 1)
    descriptions = Counter(table["description"].to_pylist())
    assert 60 <= len(descriptions) <= 400
    assert descriptions.most_common(1)[0][1] > 5 * 2000 / len(descriptions) / 2
    reviews = Counter(table["review"].to_pylist())
    assert 0.1 < 1 - len(reviews) / 2000 < 0.5
    assert len(set(table["review_id"].to_pylist())) == 2000
    per_product = {}
    for row in table.to_pylist():
        facts = tuple(row[name] for name in ("product_title", "category", "brand", "price", "country"))
        assert per_product.setdefault(row["description"], facts) == facts
    lengths = [len(text) for text in descriptions]
    assert 150 < sum(lengths) / len(lengths) < 500


def test_truths_are_whole_and_balanced():
    table = reviews_table(2000, 2)
    for name in TRUTHS:
        assert table[name].null_count == 0
    for name in ("is_positive", "suitable_for_children"):
        assert 0.25 < sum(table[name].to_pylist()) / 2000 < 0.75
    assert set(table["topic"].to_pylist()) == set(TOPICS)
    for row in table.to_pylist():
        assert row["is_positive"] == (row["rating"] >= 4)
        assert row["mentions_delivery"] == (row["topic"] == "delivery")


def test_grammar_names_a_missing_rule():
    with pytest.raises(KeyError, match="no rule"):
        Grammar({"start": "a {missing} slot"})


# --- the folder


def test_folder_is_small_and_safe():
    files = sorted(path.name for path in MODEL_FOLDER.iterdir())
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 16 * 2**20
    assert [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))] == []
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    card = (MODEL_FOLDER / "README.md").read_text()
    assert "not for real use" in card


def test_model_is_a_plain_llama(loaded):
    model, tokenizer = loaded
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.num_parameters() <= 8_000_000
    assert model.config.max_position_embeddings >= 16384
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "auto_map" not in json.loads((MODEL_FOLDER / "config.json").read_text())


def test_special_tokens_are_single(loaded):
    tokenizer = loaded[1]
    for special in ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert len(tokenizer(special, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.eos_token == "<|end|>"


def test_chat_template(loaded):
    tokenizer = loaded[1]
    turns = [{"role": "user", "content": "hello {\n}"}]
    assert (
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        == "<|user|>hello {\n}<|end|><|assistant|>"
    )
    turns = [{"role": "system", "content": "Be brief."}, *turns, {"role": "assistant", "content": "Yes"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|system|>Be brief.<|end|><|user|>hello {\n}<|end|><|assistant|>Yes<|end|>"
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_cells_tokenize_one_by_one(loaded, evaluation):
    tokenizer, (evaluate, tasks) = loaded[1], evaluation

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    examples = evaluate.held_out(tasks.TASKS, 80, seed=7)
    odd = (
        "tab\t and \n line",
        "  spaces  ",
        'a "quote" \\',
        "naïve 漢字 \U0001f600",
        "",
        "1,234.50",
        "...",
        "\u2028 x",
        "don't",
    )
    odd_fields = tuple((f"field {place}", value) for place, value in enumerate(odd))
    rows = [(example.content, example.fields) for example in examples]
    rows.append((tasks.Example("", "q?", None, odd_fields, "").content, odd_fields))
    for content, fields in rows:
        head = content[: content.index("Data:\n{\n") + len("Data:\n{\n")]
        apart = ids(head) + [token for name, value in fields for token in ids(tasks.cell(name, value))] + ids("}")
        assert apart == ids(content)
        assert tokenizer.decode(apart) == content


# --- the answers


def test_held_out_phrasings_are_apart(evaluation):
    import random

    tasks = evaluation[1]
    rng = random.Random(0)
    for task in tasks.TASKS:
        for held_out in (False, True):
            example = tasks.make_example(rng, task, held_out=held_out)
            assert tasks.is_held_out(example.question) == held_out
            assert example.choices is None or example.answer in example.choices


def test_filters_and_labels_are_right(loaded, evaluation):
    evaluate, tasks = evaluation
    examples = evaluate.held_out([task for task in tasks.TASKS if not task.startswith("copy")], 210, seed=42)
    assert evaluate.accuracy(*loaded, examples) >= 0.93


def test_values_are_copied(loaded, evaluation):
    examples = evaluation[0].held_out(["copy: value"], 40, seed=42)
    assert evaluation[0].accuracy(*loaded, examples) >= 0.4  # 62 % of 100 measured
