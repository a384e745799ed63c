"""Choices against brute force: every label after the prompt, one at a time, through the plain model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_models import EOS, tiny_model, tree_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend import Completion, Engine, Request, RequestError
from llmsql.gpu_backend.choices import plan_choices

PROMPTS = tree_prompts(10, seed=1)


def brute_force(prompt: np.ndarray, label: list[int], family: str = "llama") -> float:
    ids = torch.tensor([*prompt.tolist(), *label])[None]
    with torch.inference_mode():
        log_probs = tiny_model(family)(ids).logits[0].float().log_softmax(-1)
    return sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(label))


def choose(choices: list[list[int]], **switches: object) -> tuple[list, Engine]:
    with Engine(tiny_model(), **switches) as engine:
        requests = [Request(row, prompt, choices=choices) for row, prompt in enumerate(PROMPTS)]
        answers = sorted(engine.generate(requests), key=lambda answer: answer.id)
        engine.check()
        return answers, engine


def test_labels_with_different_first_tokens_need_one_step_and_no_decode() -> None:
    choices = [[20, 21], [30], [40, 41, 42]]
    answers, engine = choose(choices)
    for prompt, answer in zip(PROMPTS, answers):
        expected = [brute_force(prompt, label[:1]) for label in choices]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)
        assert answer.choice_index == int(np.argmax(expected))
        assert list(answer.token_ids) == choices[answer.choice_index]
        assert (answer.finish_reason, answer.error) == ("choice", None)
    assert len({answer.choice_index for answer in answers}) > 1
    assert (engine.stats.steps, engine.stats.output_tokens, engine.stats.label_tokens) == (1, 0, 0)


@pytest.mark.parametrize("max_batch_tokens", [5, 60, 5000])
@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_labels_that_share_tokens_are_compared_as_a_whole(max_batch_tokens: int, prefix_sharing: bool) -> None:
    choices = [[20, 21, 22], [20, 21, 23], [20, 25], [30, 31, 32, 33]]
    answers, engine = choose(choices, max_batch_tokens=max_batch_tokens, prefix_sharing=prefix_sharing, block_size=3)
    for prompt, answer in zip(PROMPTS, answers):
        expected = [brute_force(prompt, label) for label in choices]
        assert answer.log_probs == pytest.approx(expected, abs=2e-4)
        assert answer.choice_index == int(np.argmax(expected))
    assert engine.stats.label_tokens == len(PROMPTS) * 5  # 20, 20 21, and 30 31 32, each once per row
    assert engine.stats.steps == 1 or max_batch_tokens < 5000


def test_a_label_that_begins_another_is_scored_with_its_end() -> None:
    choices = [[20], [20, 21]]
    answers, _ = choose(choices)
    for prompt, answer in zip(PROMPTS, answers):
        assert answer.log_probs == pytest.approx(
            [brute_force(prompt, [20, EOS]), brute_force(prompt, [20, 21])], abs=2e-4
        )
        assert list(answer.token_ids) == choices[answer.choice_index]


LABELS = {
    "different from the start": [[20, 21], [30], [40, 41, 42]],
    "sharing tokens": [[20, 21, 22], [20, 21, 23], [20, 25], [30, 31, 32, 33]],
    "one token each": [[20], [21], [22], [23]],
    "beginning each other": [[20], [20, 21], [20, 21, 22], [30, 31], [30]],
}


def scored_labels(labels: list[list[int]]) -> list[list[int]]:
    return [[*a, EOS] if any(a != b and a == b[: len(a)] for b in labels) else a for a in labels]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3-moe"])
@pytest.mark.parametrize("name", LABELS)
def test_every_scoring_equals_brute_force(name: str, family: str) -> None:
    labels = LABELS[name]
    whole = np.array([[brute_force(prompt, label, family) for label in scored_labels(labels)] for prompt in PROMPTS])
    first = np.array([[brute_force(prompt, label[:1], family) for label in labels] for prompt in PROMPTS])
    lengths = np.array([len(label) for label in scored_labels(labels)])
    distinct = len({label[0] for label in labels}) == len(labels)
    with Engine(tiny_model(family), max_batch_tokens=70) as engine:
        for scoring in ("auto", "total", "mean"):
            for asked in (False, True):
                batch = [
                    Request(row, prompt, choices=labels, choice_scoring=scoring, return_log_probs=asked)
                    for row, prompt in enumerate(PROMPTS)
                ]
                done = sorted(engine.generate(batch), key=lambda answer: answer.id)
                by_first = scoring == "auto" and distinct
                expected = first if by_first else whole / lengths if scoring == "mean" else whole
                assert np.allclose([answer.scores for answer in done], expected, atol=5e-4)
                log_probs = first if by_first and not asked else whole
                assert np.allclose([answer.log_probs for answer in done], log_probs, atol=5e-4)
                assert [answer.choice_index for answer in done] == expected.argmax(-1).tolist()
                weights = np.exp(expected - expected.max(-1, keepdims=True))
                probabilities = weights / weights.sum(-1, keepdims=True)
                assert np.allclose([answer.probabilities for answer in done], probabilities, atol=5e-4)
        engine.check()


def test_scorings_disagree() -> None:
    labels = LABELS["different from the start"]
    with Engine(tiny_model()) as engine:
        chosen = {
            scoring: [
                answer.choice_index
                for answer in engine.generate(
                    Request(row, prompt, choices=labels, choice_scoring=scoring) for row, prompt in enumerate(PROMPTS)
                )
            ]
            for scoring in ("auto", "total", "mean")
        }
    assert len(set(map(tuple, chosen.values()))) == 3, "the tests above compare the same thing three times"


def test_probabilities_of_impossible_choices() -> None:
    def probabilities(*scores: float) -> tuple[float, ...] | None:
        return Completion(0, scores=scores).probabilities

    assert probabilities(-1.0, float("-inf")) == (1.0, 0.0)
    assert probabilities(float("-inf"), float("-inf")) == (0.5, 0.5)
    assert Completion(0).probabilities is None


def test_one_choice_is_certain() -> None:
    ((answer, *_), _) = choose([[20, 21]])
    assert (answer.choice_index, answer.probabilities) == (0, (1.0,))


def test_choices_and_texts_in_one_batch() -> None:
    with Engine(tiny_model(), max_batch_tokens=50) as engine:
        mixed = [
            Request(row, prompt, max_tokens=5, choices=[[20, 21], [20, 22]] if row % 2 else None, ignore_eos=True)
            for row, prompt in enumerate(PROMPTS)
        ]
        answers = {answer.id: answer for answer in engine.generate(mixed)}
        engine.check()
    for row in range(len(PROMPTS)):
        assert answers[row].finish_reason == ("choice" if row % 2 else "length")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6, unique=True),
    st.booleans(),
)
def test_the_trie_gives_every_label_token_its_place(labels: list[tuple[int, ...]], whole: bool) -> None:
    plan = plan_choices(labels, [""] * len(labels), end_token=9, vocab_size=10, whole=whole)

    def tokens_up_to(node: int, offset: int) -> tuple[int, ...]:
        if node < 0:
            return ()
        parent = plan.trie[node].parent
        above = tokens_up_to(parent, len(plan.trie[parent].token_ids) - 1)
        return (*above, *plan.trie[node].token_ids[: offset + 1])

    read: dict[int, dict[int, int]] = {index: {} for index in range(len(labels))}
    for place, terms in plan.terms.items():
        for index, token in terms:
            before = tokens_up_to(*place)
            assert before == labels[index][: len(before)]
            assert len(before) not in read[index], "a token is counted twice"
            read[index][len(before)] = token
    for index, label in enumerate(labels):
        begins_another = any(other != label and other[: len(label)] == label for other in labels)
        scored = (*label, 9) if begins_another else label
        expected = scored[:1] if plan.first_decides and not whole else scored
        assert plan.lengths[index] == len(expected)
        assert tuple(read[index][i] for i in sorted(read[index])) == expected
    placed = [tokens_up_to(n, o) for n, node in enumerate(plan.trie) for o in range(len(node.token_ids))]
    assert len(placed) == len(set(placed)), "a label token is computed twice"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "the list of choices is empty"),
        ([[1], []], "choice 1 .* has no tokens"),
        ([[1, 2], [3], [1, 2]], "choices 0 and 2 are the same"),
        ([[1], [300]], "outside the vocabulary of 200"),
    ],
)
def test_bad_choices(labels: list[list[int]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan_choices(labels, [""] * len(labels), end_token=EOS, vocab_size=200)


def test_without_an_end_token_a_prefix_cannot_be_told_apart() -> None:
    with pytest.raises(RequestError, match="no end-of-turn token"):
        plan_choices([[1], [1, 2]], ["", ""], end_token=None, vocab_size=200)
