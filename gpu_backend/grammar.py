"""Constrained output: what a request may say, and a matcher that says which tokens may come next (llguidance)."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .errors import ModelError, RequestError
from .tokenizer import PromptTokenizer

_MAX_GRAMMARS = 256  # compiled grammars kept; a query has one or a few
_MAX_REASON = 300  # characters; llguidance may list the whole vocabulary
_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "choices": "choices", "lark": "Lark grammar"}


@dataclass(frozen=True)
class Grammar:
    """The texts that a request may answer with.

    What is malformed fails the request that uses it; only a wrong type fails here, with TypeError. Where a text can go
    on in one way only, its tokens are those that the tokenizer gives for it.

    Example: `Request(0, ids, grammar=Grammar.regex("[0-9]{4}-[0-9]{2}-[0-9]{2}"))`.
    """

    kind: Literal["json_schema", "regex", "choices", "lark"]
    source: str
    """A regular expression, a Lark grammar, or JSON text: the schema or the list of choices."""
    whitespace: bool = False
    """Of a JSON schema: whether white space is free."""

    def __post_init__(self) -> None:
        if self.kind not in _NAMES or not isinstance(self.source, str):
            raise TypeError(
                f"a grammar is one of {', '.join(_NAMES)} and a text, got {self.kind!r} and {self.source!r}"
            )

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | bool | str, *, whitespace: bool = False) -> Grammar:
        """JSON of this schema, as a value or as JSON text; written as `json.dumps` does unless `whitespace` is free.

        Properties come in the order of the schema. Raises TypeError for a value that is not JSON.
        """
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema), whitespace)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        r"""The whole text matches `pattern`, in the syntax of RE2: no look-around, and \d, \w and \s are ASCII."""
        return cls("regex", pattern)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of the texts, decoded token by token; `Request(choices=...)` compares whole texts without decoding."""
        return cls("choices", json.dumps(texts if isinstance(texts, str) else list(texts)))

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """A context-free grammar in llguidance's dialect of Lark; it begins at the rule `start`."""
        return cls("lark", source)


@dataclass(frozen=True)
class _Compiled:
    """A grammar before the first token of any output."""

    native: Any  # llguidance.LLMatcher
    tokenizer: Any  # llguidance.LLTokenizer
    start: tuple[int, ...]
    only_empty: bool  # nothing but the empty text matches
    end_ids: tuple[int, ...]
    num_words: int


class Matcher:
    """The state of one output under its grammar."""

    def __init__(self, native: Any, compiled: _Compiled) -> None:
        self.native = native  # llguidance.LLMatcher
        self.compiled = compiled

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens with which every output begins, if any; not consumed yet."""
        return self.compiled.start

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the output."""
        return self.compiled.end_ids

    @property
    def num_words(self) -> int:
        """32-bit words of a mask; it may go on beyond the model's vocabulary."""
        return self.compiled.num_words

    @property
    def satisfied(self) -> bool:
        """Whether the output may end here."""
        return bool(self.native.is_accepting()) and not self.native.is_error()

    @property
    def done(self) -> bool:
        """Whether the output is satisfied and nothing may follow."""
        return self.compiled.only_empty or (bool(self.native.is_stopped()) and self.satisfied)

    @property
    def problem(self) -> str | None:
        """Why the matcher cannot go on, in llguidance's words; None while it can."""
        if self.native.is_error():
            return _reason(self.native.get_error())
        return str(self.native.stop_reason()) if self.native.is_stopped() and not self.satisfied else None

    def push(self, token_id: int) -> bool:
        """Go on by one token of the output (not the end of the sequence); False if it is not allowed."""
        return bool(self.native.consume_token(token_id))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens, byte by byte: some tokenizers drop a leading space when they decode."""
        return bytes(self.compiled.tokenizer.decode_bytes(list(token_ids))).decode("utf-8", "replace")

    def forced(self) -> list[int]:
        """The next tokens, as far as there is only one way to go on."""
        return list(self.native.compute_ff_tokens())


@dataclass(eq=False)
class GrammarCompiler:
    """Compiles each distinct grammar once, for one tokenizer and vocabulary. Any number of threads may use it."""

    tokenizer: Callable[[], PromptTokenizer]  # loads it; raises ModelError where there is none
    vocab_size: int  # of the model
    eos_token_ids: tuple[int, ...]
    _compiled: dict[Grammar, _Compiled | RequestError] = field(default_factory=dict)
    _adapter: Any = None  # llguidance.LLTokenizer
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A fresh matcher; raises RequestError for a grammar that is malformed or that no text matches."""
        with self._lock:
            compiled = self._compiled.pop(grammar, None)
            if compiled is None:
                try:
                    compiled = self._compile(grammar)
                except RequestError as problem:
                    compiled = problem  # many rows may have it
            self._compiled[grammar] = compiled  # the last used one is the last to go
            if len(self._compiled) > _MAX_GRAMMARS:
                del self._compiled[next(iter(self._compiled))]
        if isinstance(compiled, RequestError):
            raise RequestError(str(compiled))
        return Matcher(compiled.native.deep_copy(), compiled)

    def _compile(self, grammar: Grammar) -> _Compiled:
        import llguidance

        tokenizer = self._native_tokenizer()
        limits = llguidance.LLParserLimits(verbose_errors=False)
        native = llguidance.LLMatcher(tokenizer, _native_grammar(grammar), log_level=0, limits=limits)
        mask = np.frombuffer(b"" if native.is_error() else native.compute_bitmask(), np.uint8)
        if native.is_error():
            raise _refused(grammar, native.get_error())
        end_ids = tuple(tokenizer.eos_tokens)
        only_empty = bool(native.is_accepting()) and int(np.unpackbits(mask).sum()) <= len(end_ids)
        start = () if only_empty else tuple(native.compute_ff_tokens())
        return _Compiled(native, tokenizer, start, only_empty, end_ids, -(-tokenizer.vocab_size // 32))

    def _native_tokenizer(self) -> Any:
        if self._adapter is None:
            try:
                self._adapter = _adapt(self.tokenizer(), self.vocab_size, self.eos_token_ids)
            except ModelError as problem:
                raise RequestError(f"constrained output needs a tokenizer: {problem}") from problem
        return self._adapter


def _adapt(tokenizer: PromptTokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> Any:
    """llguidance's view of the tokenizer, with a bit for every token id of the model; takes about a second."""
    import llguidance

    state = tokenizer.backend_state()
    decoder = state.get("decoder") or {}
    if decoder.get("type", "Metaspace") == "Metaspace":  # llguidance knows the steps, not this name for them
        state["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": decoder.get("replacement", "▁")}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        }
    size = max(vocab_size, tokenizer.vocab_size)
    end = [token for token in eos_token_ids or tokenizer.eos_token_ids if 0 <= token < size]
    if not end:  # the model cannot end by itself: an id that no logits have, or llguidance would take token 0
        end, size = [size], size + 1
    kind = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    for token in range(tokenizer.vocab_size, max(end) + 1):  # llguidance takes an end from the tokenizer's tokens only
        state["added_tokens"].append({"id": token, "content": f"<|llmsql {token}|>", **kind})
    _hide_control_tokens(state, end)
    try:
        return llguidance.LLTokenizer(json.dumps(state), n_vocab=size, eos_token=end)
    except ValueError as problem:
        raise RequestError(f"llguidance cannot use this model's tokenizer: {_reason(str(problem))}") from problem


def _hide_control_tokens(state: dict[str, Any], end: Sequence[int]) -> None:
    """Give control tokens names that no text has: llguidance tokenizes the text that a grammar forces.

    Otherwise a schema in which `"<|im_end|>"` is a value would force the token, which ends the output before it is one.
    """
    model = state["model"]
    vocab: Any = model["vocab"]  # piece to id, or pieces with their scores
    pieces = {token: piece for piece, token in vocab.items()} if isinstance(vocab, dict) else None
    added = {token["id"]: token for token in state["added_tokens"]}
    nonce, renamed = secrets.token_hex(8), set()
    for token in {*end, *(token for token, entry in added.items() if entry["special"])}:
        name = f"<|llmsql {nonce} {token}|>"
        if token in added:
            if added[token]["content"] == model.get("unk_token"):
                continue  # tokenizers looks for it by name
            added[token]["content"] = name
        if pieces is not None and token in pieces:
            vocab[name] = vocab.pop(pieces[token])
            renamed.add(pieces[token])
        elif pieces is None and token < len(vocab) and token != model.get("unk_id"):
            vocab[token] = [name, vocab[token][1]]
    if merges := model.get("merges"):
        pairs = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in merges)
        model["merges"] = [merge for merge, pair in pairs if "".join(pair) not in renamed and renamed.isdisjoint(pair)]


def _native_grammar(grammar: Grammar) -> str:
    """The grammar as llguidance writes it; raises RequestError for JSON text that is none."""
    from llguidance import LLMatcher, regex_to_lark

    if grammar.kind == "lark":
        return str(LLMatcher.grammar_from_lark(grammar.source))
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(regex_to_lark(grammar.source, "dws")))
    try:
        value = json.loads(grammar.source)
    except ValueError as problem:
        raise _refused(grammar, f"it is not JSON: {problem}") from problem
    if grammar.kind == "choices":
        return str(LLMatcher.grammar_from_lark(f"start: {_alternatives(grammar, value)}"))
    if value is False:
        raise _refused(grammar, "no text matches it")
    value = {} if value is True else value
    if not isinstance(value, dict):
        raise _refused(grammar, f"a schema is an object or a boolean, not {grammar.source[:40]}")
    layout: dict[str, Any] = {"whitespace_flexible": grammar.whitespace}
    if not grammar.whitespace:
        layout.update(item_separator=", ", key_separator=": ")
    return str(LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=layout))


def _alternatives(grammar: Grammar, texts: object) -> str:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _refused(grammar, f"choices are a list of texts, not {grammar.source[:40]}")
    if not texts:
        raise _refused(grammar, "the list of choices is empty")
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _refused(grammar: Grammar, message: str) -> RequestError:
    return RequestError(f"the grammar ({_NAMES[grammar.kind]}) cannot be used: {_reason(message)}")


def _reason(message: str) -> str:
    """What llguidance said, without the drawing of where and the state of its parser."""
    if message.startswith("NoExtension"):
        return "no text matches it"
    lines = [line.strip() for line in message.split("<state>")[0].splitlines()]
    cause = next((line for line in lines if line.startswith("error: ")), "")  # the regex parser's own, after a drawing
    return " ".join(filter(None, [lines[0] if lines else "", cause.removeprefix("error: ")]))[:_MAX_REASON]
