"""Stop texts, wherever they begin and end in tokens and characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_models import KINDS, speaking_model, wrapped

from llmsql.gpu_backend import Engine, PromptTokenizer, Request
from llmsql.gpu_backend.stop import StopFinder

TOKENIZERS = {kind: PromptTokenizer(wrapped(KINDS[kind]())) for kind in KINDS}


def first_stop(text: str, stops: list[str]) -> int | None:
    places = [text.find(stop) for stop in stops if stop in text]
    return min(places) if places else None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([kind for kind in KINDS if kind != "unigram"]),
    st.text(st.sampled_from(list("ab \n.é日🙂{}")), max_size=30),
    st.lists(st.text(st.sampled_from(list("ab \n.é日🙂{}")), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_is_found_with_its_last_token(kind: str, text: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).tolist()
    text = tokenizer.decode(ids)
    finder = StopFinder(tokenizer.decode, stops)
    found = next(((count, before) for count, i in enumerate(ids, 1) if (before := finder.push(i)) is not None), None)
    complete = [count for count in range(len(ids) + 1) if first_stop(tokenizer.decode(ids[:count]), stops) is not None]
    if not complete:
        assert found is None
        return
    assert found is not None
    shown = tokenizer.decode(ids[: complete[0]])
    assert found == (complete[0], shown[: first_stop(shown, stops)])


@pytest.mark.parametrize("kind", ["llama3", "llama2", "gemma"])
def test_generation_ends_at_the_stop_text(kind: str) -> None:
    model, tokenizer = speaking_model(kind)
    with Engine(model, tokenizer=tokenizer) as engine:
        prompts = [engine.tokenizer.encode(f"Data:\n{'user ' * row}") for row in range(5)]
        free = {
            answer.id: answer
            for answer in engine.generate(Request(row, ids, max_tokens=30) for row, ids in enumerate(prompts))
        }
        ended = 0
        for row, ids in enumerate(prompts):
            text = free[row].text
            runs = [run for run in text.split("\ufffd") if run]  # a random model writes bytes that are no characters
            for stop in [*[run[:3] for run in runs[:3]], *[run[-1:] for run in runs[:3]], "never this"]:
                (answer,) = engine.generate([Request(row, ids, max_tokens=30, stop=["neither that", stop])])
                assert answer.error is None
                count = len(answer.token_ids)
                assert answer.token_ids == free[row].token_ids[:count]
                if answer.finish_reason == "stop" and count < len(free[row].token_ids):
                    assert answer.text == text[: text.index(stop)]
                    assert stop not in engine.tokenizer.decode(answer.token_ids[:-1])
                    ended += 1
                elif stop not in text:
                    assert answer.text == text
        assert ended > 8
        engine.check()
