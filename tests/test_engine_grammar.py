"""Constrained output: always of its grammar, and the same whatever is done to be fast."""

from __future__ import annotations

import copy
import gc
import json
import re
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_models import KINDS, speaking_model, wrapped

from llmsql.gpu_backend import Completion, Engine, EngineError, Grammar, PromptTokenizer, Request, RequestError, masks
from llmsql.gpu_backend.grammar import GrammarCompiler, Matcher
from llmsql.gpu_backend.output import Output

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 8},
        "rating": {"type": "integer", "minimum": -5, "maximum": 1000},
        "kind": {"enum": ["great phone", "great cable", "don't know", "great"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "maker": {"type": "object", "properties": {"name": {"const": "Anna"}}, "required": ["name"]},
    },
    "required": ["title", "rating", "kind", "tags", "maker"],
    "additionalProperties": False,
}
SCHEMA["properties"]["maker"]["additionalProperties"] = False
GRAMMARS = {
    "json": Grammar.json_schema(SCHEMA),
    "loose json": Grammar.json_schema(json.dumps(SCHEMA), whitespace=True),
    "date": Grammar.regex(r"(user|assistant): \d{4}-\d{2}-\d{2}  and of the (star|stars)\.\n\n?"),
    "words": Grammar.regex(r" ?Is it good\??( Is it (good|bad)){0,3}"),
    "late": Grammar.regex(r"[a-z ]{0,12}the end"),
    "digits": Grammar.regex("(12345678|123456789|12345)x?"),
    "spaces": Grammar.regex(r"[ \n]{3}x  y   z\n\n\n!"),
    "unicode": Grammar.regex("naïve café ☕{1,3} 日本語?"),
    "choices": Grammar.choices(["Great phone, 5 stars", "Great phoney", "Great", 'é日🙂!\n"']),
    "lark": Grammar.lark('start: a{1,3}\na: "Is it" " "? ("good"|"goo"|"go") "\\n"'),
}
PROMPT = "Data:\n{\n"


def matches(name: str, text: str) -> bool:
    """Whether the text is of the grammar, told without llguidance."""
    if "json" in name:
        layout_fits = layout(text) == layout(json.dumps(json.loads(text)))
        return is_valid(json.loads(text), SCHEMA) and (layout_fits or name != "json")
    if name == "choices":
        return text in json.loads(GRAMMARS[name].source)
    if name == "lark":
        return re.fullmatch(r"(Is it ?(good|goo|go)\n){1,3}", text) is not None
    return re.fullmatch(GRAMMARS[name].source, text, re.ASCII) is not None


def layout(text: str) -> str:
    """JSON with all texts and numbers alike."""
    return re.sub(r"-?[0-9]+", "0", re.sub(r'"(\\.|[^"\\])*"', '""', text))


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """A validator of the keywords in SCHEMA."""
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema["type"]
    if kind == "object":
        known = schema["properties"]
        return set(value) == set(schema["required"]) and all(is_valid(value[key], known[key]) for key in value)
    if kind == "array":
        items = schema["items"]
        return schema["minItems"] <= len(value) <= schema["maxItems"] and all(is_valid(item, items) for item in value)
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    return type(value) is bool if kind == "boolean" else isinstance(value, str) and len(value) <= schema["maxLength"]


@cache
def compiler(kind: str) -> GrammarCompiler:
    tokenizer = wrapped(KINDS[kind]())
    prompt = PromptTokenizer(tokenizer)
    return GrammarCompiler(lambda: prompt, len(tokenizer) + 40, (tokenizer.eos_token_id,))


def allowed_tokens(matcher: Matcher) -> list[int]:
    words = np.zeros(matcher.num_words, np.int32)
    matcher.native.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def drawn(kind: str, grammar: Grammar, seed: int, *, forces: bool, max_tokens: int = 400) -> tuple[Output, int]:
    """An output of which each token is drawn from those allowed, and how often one was drawn."""
    matcher = compiler(kind).matcher(grammar)
    output = Output(max_tokens, frozenset(matcher.end_ids), 10_000, matcher, skips_model=forces)
    output.begin()
    calls = 0
    while output.finish_reason is None and output.problem is None:
        rng = np.random.default_rng([seed, len(output.token_ids)])
        allowed = allowed_tokens(matcher)
        assert output.expected is None or forces is False
        output.add(int(rng.choice(allowed)) if output.expected is None else output.expected)
        calls += 1
    return output, calls


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_are_those_that_masks_would_have_left(kind: str) -> None:
    for name, grammar in GRAMMARS.items():
        calls = [0, 0]
        for seed in range(8):
            if kind == "unigram" and name in ("unicode", "choices", "spaces"):
                continue  # its pieces cannot spell them
            forced, plain = (drawn(kind, grammar, seed, forces=forces) for forces in (True, False))
            assert forced[0].token_ids == plain[0].token_ids, name
            assert forced[0].finish_reason == "stop"
            assert forced[0].problem is None
            assert matches(name, forced[0].text(lambda _: "")), name
            calls[0] += forced[1]
            calls[1] += plain[1]
        assert calls[0] < calls[1] or calls == [0, 0]


TEXTS = st.text(st.sampled_from(list("ab 1\n\"'é日.")), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([kind for kind in KINDS if kind != "unigram"]),
    st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_forcing_changes_nothing_in_random_grammars(kind: str, parts: list[list[str]], seed: int) -> None:
    pattern = "".join(f"({'|'.join(map(re.escape, part))})" for part in parts)
    forced, plain = (drawn(kind, Grammar.regex(pattern), seed, forces=forces)[0] for forces in (True, False))
    assert forced.token_ids == plain.token_ids
    assert re.fullmatch(pattern, forced.text(lambda _: ""))


def engine_for(kind: str = "llama3", **switches: Any) -> Engine:
    model, tokenizer = speaking_model(kind)
    return Engine(model, tokenizer=tokenizer, **switches)


def requests(engine: Engine, count: int = 3, **options: Any) -> list[Request]:
    """Each grammar `count` times: greedy, then at rising temperatures; some prompts are equal."""
    made = []
    for number, (name, grammar) in enumerate(GRAMMARS.items()):
        for turn in range(count):
            prompt = engine.tokenizer.encode(PROMPT + "user " * ((number + turn) % 4))
            settings = {"temperature": 0.7 * turn, "seed": turn, "max_tokens": 300, **options}
            if turn == 2:
                settings.update(top_k=30, top_p=0.95, min_p=0.01)
            made.append(Request((name, turn), prompt, grammar=grammar, **settings))
    return made


def answers(engine: Engine, batch: list[Request]) -> dict[Any, Completion]:
    done = {answer.id: answer for answer in engine.generate(batch)}
    engine.check()
    return done


@cache
def reference() -> dict[Any, Completion]:
    with engine_for(forced_tokens=False, overlap_masks=False) as engine:
        done = answers(engine, requests(engine, return_log_probs=True))
        assert engine.stats.forced_tokens == 0
        return done


def test_outputs_are_of_their_grammars() -> None:
    texts = set()
    for (name, _), answer in reference().items():
        assert answer.error is None
        assert answer.finish_reason == "stop"
        assert not answer.incomplete
        assert matches(name, answer.text), (name, answer.text)
        texts.add(answer.text)
    assert len(texts) > 20


SWITCHES: dict[str, dict[str, Any]] = {
    "forced tokens": {},
    "overlapped masks": {"forced_tokens": False, "overlap_masks": True},
    "both": {"overlap_masks": True},
    "small steps": {"max_batch_tokens": 5, "block_size": 3, "overlap_masks": True},
    "small pool": {"kv_memory": 256 * 330, "block_size": 2},
    "no sharing": {"prefix_sharing": False},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_changes_an_answer(name: str) -> None:
    with engine_for(**SWITCHES[name]) as engine:
        done = answers(engine, requests(engine, return_log_probs=True))
        for key, answer in reference().items():
            assert done[key].token_ids == answer.token_ids, key
            assert done[key].text == answer.text
            assert done[key].finish_reason == answer.finish_reason
            assert done[key].log_probs == pytest.approx(answer.log_probs, abs=1e-4)
        expected = sum(len(answer.token_ids) for answer in done.values())
        assert engine.stats.output_tokens == expected
        if name != "overlapped masks":
            assert engine.stats.forced_tokens > expected / 3
            # Every other output token was read from logits, and all but those at the end were run.
            run = engine.stats.step_tokens - engine.stats.computed_tokens
            assert run < expected - len(done)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_allowed_token_is_taken(kind: str) -> None:
    """Against the plain model, asked for one token at a time."""
    model, tokenizer = speaking_model(kind)
    grammar = GRAMMARS["json"]
    with Engine(model, tokenizer=tokenizer) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        (answer,) = engine.generate([Request(0, prompt, grammar=grammar, max_tokens=200, return_log_probs=True)])
    matcher = compiler(kind).matcher(grammar)
    ids = prompt.tolist()
    log_probs = []
    while not matcher.done:
        allowed = allowed_tokens(matcher)
        with torch.inference_mode():
            logits = model(torch.tensor(ids)[None]).logits[0, -1, allowed]
        best = int(logits.argmax())
        log_probs.append(float(logits.log_softmax(-1)[best]))
        matcher.push(allowed[best])
        ids.append(allowed[best])
    assert list(answer.token_ids) == ids[len(prompt) :]
    assert answer.log_probs == pytest.approx(log_probs, abs=1e-3)
    assert max(answer.token_ids) < len(tokenizer), "a token that the tokenizer does not have"
    assert matches("json", answer.text)


def test_threads_with_grammars_of_their_own() -> None:
    results: dict[int, dict[Any, str]] = {}
    with engine_for(overlap_masks=True, max_batch_tokens=64) as engine:

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            batch = requests(engine, 2)
            done = engine.generate(batch[i] for i in rng.permutation(len(batch)))
            results[number] = {answer.id: answer.text for answer in done}

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
    expected = {key: answer.text for key, answer in reference().items() if key[1] < 2}
    assert list(results.values()) == [expected] * 3


def test_constrained_free_and_choice_requests_share_a_prompt() -> None:
    with engine_for() as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        batch = [
            Request("free", prompt, max_tokens=6),
            Request("number", prompt, grammar=Grammar.regex("[0-9]{3}[a-z]")),
            Request("choice", prompt, choices=["Yes", "No"]),
            Request("letters", prompt, grammar=Grammar.regex("[a-z]{3}[0-9]")),
        ]
        together = answers(engine, batch)
        for request in batch:
            alone = answers(engine, [request])[request.id]
            assert (alone.token_ids, alone.text) == (together[request.id].token_ids, together[request.id].text)
    assert re.fullmatch("[0-9]{3}[a-z]", together["number"].text)
    assert re.fullmatch("[a-z]{3}[0-9]", together["letters"].text)
    assert together["free"].finish_reason in ("stop", "length")


def test_what_is_forced_from_end_to_end_runs_no_step() -> None:
    with engine_for() as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        one = answers(engine, [Request(0, prompt, grammar=Grammar.choices(["Great phone, 5 stars"]))])[0]
        empty = answers(engine, [Request(0, prompt, grammar=Grammar.choices([""]))])[0]
        assert (one.text, one.finish_reason, one.num_prompt_tokens) == ("Great phone, 5 stars", "stop", len(prompt))
        assert (empty.text, empty.token_ids, empty.finish_reason) == ("", (), "stop")
        assert engine.stats.steps == 0
        assert engine.stats.output_tokens == engine.stats.forced_tokens == len(one.token_ids)


@pytest.mark.parametrize("forced_tokens", [True, False])
def test_max_tokens_cuts_and_says_so(forced_tokens: bool) -> None:
    grammar = GRAMMARS["json"]
    with engine_for(forced_tokens=forced_tokens) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        whole = answers(engine, [Request(0, prompt, grammar=grammar, max_tokens=300)])[0]
        length = len(whole.token_ids)
        batch = [Request(n, prompt, grammar=grammar, max_tokens=n) for n in range(1, length + 3)]
        for n, answer in answers(engine, batch).items():
            assert answer.token_ids == whole.token_ids[:n]
            assert answer.error is None
            assert (answer.finish_reason, answer.incomplete) == (("length", True) if n < length else ("stop", False))
        # A text that may go on is cut, but matches its grammar.
        (cut,) = engine.generate([Request(0, prompt, grammar=Grammar.regex("[a-z]+"), max_tokens=3)])
        assert (cut.finish_reason, cut.incomplete) == ("length", False)


BAD = [
    (Grammar.json_schema({"type": "string", "minLength": 5, "maxLength": 3}), "Unsatisfiable schema: minLength"),
    (Grammar.json_schema({"type": "banana"}), "Invalid type: banana"),
    (Grammar.json_schema({"not": {}}), 'Unimplemented keys: \\["not"\\]'),
    (Grammar.json_schema('{"type":'), "JSON schema.* is not JSON"),
    (Grammar.json_schema("[1]"), "an object or a boolean"),
    (Grammar.json_schema(False), "no text matches it"),
    (Grammar.regex("("), "regular expression.* unclosed group"),
    (Grammar.regex("a(?=b)"), "look-ahead and look-behind, is not supported"),
    (Grammar.regex("[^\\x00-\\U0010ffff]"), "no text matches it"),
    (Grammar.lark("nonsense"), "Lark grammar.* Expected token ':'"),
    (Grammar.lark('start: start "a"'), "no text matches it"),
    (Grammar.lark("start: <nosuch>"), "unknown special token"),
    (Grammar.choices([]), "the list of choices is empty"),
    (Grammar.choices("abc"), "a list of texts"),
    (Grammar.choices([7]), "a list of texts"),  # type: ignore[list-item]
]


def test_grammars_that_cannot_be_followed_fail_alone() -> None:
    with engine_for() as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        good = Request("good", prompt, grammar=Grammar.regex("[a-z]{4}"))
        batch = [
            Request((number, copy), prompt, grammar=BAD[number][0]) for number in range(len(BAD)) for copy in (0, 1)
        ]
        done = answers(engine, [*batch, good])
        assert re.fullmatch("[a-z]{4}", done.pop("good").text)
        for (number, _), answer in done.items():
            assert answer.finish_reason == "error"
            assert re.search(BAD[number][1], str(answer.error)), answer.error
            assert len(str(answer.error)) < 400
        assert engine.stats.failed_requests == 2 * len(BAD)


def test_a_grammar_of_a_wrong_type_fails_at_once() -> None:
    for make in (lambda: Grammar.regex(7), lambda: Grammar.lark(None), lambda: Grammar("bnf", "x")):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a grammar is one of json_schema, regex"):
            make()
    with pytest.raises(TypeError):
        Grammar.json_schema({"enum": {1, 2}})


def test_pieces_that_cannot_spell_the_text_are_an_error() -> None:
    with engine_for("unigram") as engine:
        prompt = engine.tokenizer.encode("Is it good?")
        for grammar in (Grammar.choices(["a ☕ b"]), Grammar.choices(["a ☕ b", "a ☕ c", "a ☕"])):
            answer = answers(engine, [Request(0, prompt, grammar=grammar)])[0]
            assert "the grammar cannot be followed any further" in str(answer.error)


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Grammar] = []
    original = GrammarCompiler._compile

    def counted(self: GrammarCompiler, grammar: Grammar) -> Any:
        compiled.append(grammar)
        return original(self, grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", counted)
    monkeypatch.setattr("llmsql.gpu_backend.grammar._MAX_GRAMMARS", 3)
    made = compiler.__wrapped__("llama3")
    for grammar in (Grammar.regex("a+"), Grammar.regex("a+"), Grammar.regex("(")):
        for _ in range(2):
            try:
                made.matcher(grammar)
            except RequestError:
                assert grammar.source == "("
    assert [grammar.source for grammar in compiled] == ["a+", "("]
    for number in range(5):
        made.matcher(Grammar.regex(f"b{{{number + 1}}}"))
    assert len(made._compiled) == 3


def test_a_model_without_an_end_token_is_stopped_by_the_grammar_or_by_max_tokens() -> None:
    model, _ = speaking_model()
    plain = wrapped(KINDS["llama3"]())
    plain.eos_token = None
    mute = copy.deepcopy(model)
    mute.config.eos_token_id = mute.generation_config.eos_token_id = None
    with Engine(mute, tokenizer=plain) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        open_, closed = (Request(0, prompt, grammar=Grammar.regex(r), max_tokens=20) for r in ("[a-z!]+", "[a-z]{5}!"))
        first, second = (answers(engine, [request])[0] for request in (open_, closed))
    assert (first.finish_reason, first.incomplete, len(first.token_ids)) == ("length", False, 20)
    assert (second.finish_reason, second.text[5:]) == ("stop", "!")


def test_an_end_token_that_the_tokenizer_does_not_have() -> None:
    model, tokenizer = speaking_model()
    ending = copy.deepcopy(model)
    ending.generation_config.eos_token_id = [len(tokenizer) + 5, tokenizer.eos_token_id]
    with Engine(ending, tokenizer=tokenizer) as engine:
        made = engine._intake.grammars.matcher(Grammar.regex("a+"))
        assert sorted(made.end_ids) == sorted(engine.eos_token_ids)
        done = answers(engine, [Request(0, engine.tokenizer.encode(PROMPT), grammar=Grammar.regex("[a-z]{0,9}"))])[0]
        assert re.fullmatch("[a-z]{0,9}", done.text)


def test_outputs_of_one_grammar_do_not_touch_each_other() -> None:
    one, other = compiler("llama3").matcher(GRAMMARS["digits"]), compiler("llama3").matcher(GRAMMARS["digits"])
    assert one.push(one.start[0])
    assert other.start == one.start
    assert one.forced() != other.forced()


def test_masks_are_unpacked_alike_on_every_device() -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (5, 4), np.int64).astype(np.int32)
    expected = [[not (int(row[token // 32]) >> (token % 32)) & 1 for token in range(117)] for row in words]
    assert masks._hidden_on_cpu(words, 117).tolist() == expected
    assert masks._hidden(words, 117, torch.device("cpu")).tolist() == expected


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    engine = engine_for(overlap_masks=True)
    results = engine.generate(requests(engine))
    next(results)
    engine.close()
    del results, engine
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread not in before] == []


def test_nan_and_failing_steps_leave_the_masks_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {key: answer.text for key, answer in reference().items() if key[1] == 0}
    with engine_for(overlap_masks=True) as engine:
        batch = requests(engine, 1)
        forward = engine._runner.forward

        def fail(*_: object) -> None:
            raise RuntimeError("the device is lost")

        def run_short(step: Any) -> Any:
            if len(step.token_ids) > 6:
                raise torch.OutOfMemoryError("out of memory")
            return forward(step)

        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "forward", fail)
            with pytest.raises(EngineError, match="the device is lost"):
                answers(engine, batch)
        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "forward", lambda step: forward(step) * float("nan"))
            assert all("NaN" in str(answer.error) for answer in answers(engine, batch).values())
        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "forward", run_short)
            assert {key: answer.text for key, answer in answers(engine, batch).items()} == expected
        assert {key: answer.text for key, answer in answers(engine, batch).items()} == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forced_tokens", [True, False])
def test_a_text_that_spells_a_control_token_is_text(kind: str, forced_tokens: bool) -> None:
    model, tokenizer = speaking_model(kind)
    texts = {
        '"<|im_end|>"': Grammar.json_schema({"enum": ["<|im_end|>"]}),
        '"a</s>b<s>"': Grammar.json_schema({"const": "a</s>b<s>"}),
        "<|im_end|>": Grammar.choices(["<|im_end|>"]),
        "x<|im_start|>y": Grammar.regex(r"x<\|im_start\|>y"),
    }
    with Engine(model, tokenizer=tokenizer, forced_tokens=forced_tokens) as engine:
        requests = [Request(text, [5, 6], max_tokens=60, grammar=grammar) for text, grammar in texts.items()]
        for answer in engine.generate(requests):
            assert (answer.error, answer.text, answer.finish_reason) == (None, answer.id, "stop")
