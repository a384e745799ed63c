"""Text to prompt tokens: cells one by one, never a control token from a cell, and the chat frame around them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .chat import Turn, single_turn
from .errors import ModelError
from .plain_text import Place, PlainTextTokenizer, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 256  # prompts tokenized at once
_MAX_CUT = 256  # texts of templates remembered; a model has two or three, and one more a day if it shows the date


class PromptTokenizer:
    """A Hugging Face tokenizer for prompts whose text is data.

    A cell that spells `<|im_end|>` becomes the tokens of these characters; control tokens come from the chat template
    only. Tokens added only for runs of white space are kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, eos_token_ids: Sequence[int] = ()) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json, which the engine needs")
        self._tokenizer = tokenizer
        state = self.backend_state()
        added = state.get("added_tokens") or []
        kept = {token["id"] for token in added if not token["special"] and not token["content"].strip()}
        self._control = {token["id"]: token["content"] for token in added if token["id"] not in kept}
        for name, token_id in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids):
            self._control.setdefault(token_id, name)
        self._swallow_after = {token["id"] for token in added if token["rstrip"]}  # white space, as part of them
        self._swallow_before = {token["id"] for token in added if token["lstrip"]}
        self._kept = [token["content"] for token in added if token["id"] in kept]
        unknown = tokenizer.unk_token_id  # comes out for characters that the tokenizer does not have
        forbidden = {token_id: name for token_id, name in self._control.items() if token_id != unknown}
        self._cut: dict[str, list[int | str]] = {}  # what `_cut_at_control_tokens` has found; the same for many prompts
        self._plain = PlainTextTokenizer(state, forbidden, kept)
        end = tokenizer.eos_token_id
        self._eos_token_ids = tuple(eos_token_ids) or (() if end is None else (int(end),))
        self._end_token_id = end if end is not None else (self._eos_token_ids[0] if self._eos_token_ids else None)
        self.additive: bool = self._is_additive()
        """Whether cells tokenized one by one and concatenated equal the whole prompt's tokens (tried on samples)."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids at which generation stops."""
        return self._eos_token_ids

    @property
    def end_token_id(self) -> int | None:
        """The token that ends an assistant's turn."""
        return self._end_token_id

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, control tokens included."""
        return 1 + int(max(self._tokenizer.get_vocab().values()))

    def backend_state(self) -> dict[str, Any]:
        """The whole tokenizer, control tokens included, as in tokenizer.json; without truncation and padding."""
        state: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        return state

    def encode(self, text: str) -> TokenIds:
        """Tokens of data that follows other text: no special token is added, and none is recognised in the text."""
        return self._plain.encode([text])[0]

    def encode_cells(self, texts: Iterable[str]) -> list[TokenIds]:
        """Tokens of each text as `encode` gives them; fast for many texts at once."""
        return self._plain.encode(texts)

    def encode_answer(self, text: str) -> TokenIds:
        """Tokens of an answer, as they follow the chat prompt: with a space in front where the template puts one."""
        try:
            turn = single_turn(self._tokenizer)
        except ModelError:
            return self.encode(text)
        prompt = self._encode_pieces([(turn.after, False)], "inside")
        whole = self._encode_pieces([(turn.after, False), (turn.gap + text, True)], "inside")
        fits = np.array_equal(whole[: len(prompt)], prompt)
        return whole[len(prompt) :] if fits else self.encode(turn.gap + text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def chat_frame(
        self, system: str | None = None, *, opening: str = "", closing: str = ""
    ) -> tuple[TokenIds, TokenIds]:
        """What stands before and after the cells in a conversation of one turn, up to the answer.

        `opening` and `closing` are the beginning and the end of the user's text that all prompts share; given here,
        they are tokenized together with the template's text next to them, as the template's own tokens have it.
        See `chat.single_turn` for system texts. Raises ModelError for a template that does not show the user's text
        exactly once.
        """
        return self._frame(single_turn(self._tokenizer, system), opening, closing)

    def chat_prompt(self, user: str, system: str | None = None) -> TokenIds:
        """The whole prompt: the tokens of the model's own chat template, except that no data is a control token."""
        return next(self.chat_prompts([user], system))

    def chat_prompts(self, users: Iterable[str], system: str | None = None) -> Iterator[TokenIds]:
        """The whole prompts of many users' texts, with the template rendered once; raises as `chat_frame` does."""
        turn = single_turn(self._tokenizer, system)
        remaining = iter(users)

        def in_batches() -> Iterator[TokenIds]:
            while batch := list(islice(remaining, _BATCH)):
                yield from self._wholes(turn, batch)

        return in_batches()

    def _frame(self, turn: Turn, opening: str, closing: str) -> tuple[TokenIds, TokenIds]:
        if turn.trims:
            opening, closing = opening.lstrip(), closing.rstrip()
        before = self._encode_pieces([*turn.before, (opening, True)], "start")
        return before, self._encode_pieces([(closing, True), (turn.after, False)], "inside")

    def _wholes(self, turn: Turn, users: list[str]) -> list[TokenIds]:
        texts = [user.strip() for user in users] if turn.trims else users
        return self._encode_many([[*turn.before, (text, True), (turn.after, False)] for text in texts], "start")

    def _encode_pieces(self, pieces: Iterable[tuple[str, bool]], place: Place) -> TokenIds:
        return self._encode_many([pieces], place)[0]

    def _encode_many(self, prompts: Iterable[Iterable[tuple[str, bool]]], place: Place) -> list[TokenIds]:
        """Tokens of texts that follow each other, the first one at `place`; data (True) holds no control tokens.

        The text between two control tokens is tokenized as one.
        """
        plans = [self._items(pieces) for pieces in prompts]
        places = [[place if index == 0 else "segment" for index in range(len(items))] for items in plans]
        texts: dict[Place, list[str]] = {}
        for items, where in zip(plans, places):
            for item, at in zip(items, where):
                if isinstance(item, str):
                    texts.setdefault(at, []).append(item)
        encoded = {at: iter(self._plain.encode(found, at)) for at, found in texts.items()}
        results = []
        for items, where in zip(plans, places):
            parts = [next(encoded[at]) if isinstance(item, str) else [item] for item, at in zip(items, where)]
            results.append(np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int32))
        return results

    def _items(self, pieces: Iterable[tuple[str, bool]]) -> list[int | str]:
        """Control tokens as ids, and all text between two of them as one, without white space that they swallow."""
        items: list[int | str] = []
        for text, is_data in pieces:
            for item in [text] if is_data else self._cut_at_control_tokens(text):
                if isinstance(item, str) and items and isinstance(items[-1], str):
                    items[-1] += item
                elif item != "":
                    items.append(item)
        for index, item in enumerate(items):
            if isinstance(item, str):
                if index > 0 and items[index - 1] in self._swallow_after:
                    item = item.lstrip()
                if index + 1 < len(items) and items[index + 1] in self._swallow_before:
                    item = item.rstrip()
                items[index] = item
        return items

    def _cut_at_control_tokens(self, text: str) -> list[int | str]:
        """Control tokens as ids, and the texts between them without the white space that a control token swallows."""
        items = self._cut.get(text)
        if items is None:
            encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
            items, done = [], 0
            for token_id, (begin, end) in zip(encoding.ids, encoding.offsets):
                if token_id in self._control:
                    items += [text[done:begin], token_id]
                    done = end
            items.append(text[done:])
            if len(self._cut) >= _MAX_CUT:
                self._cut.clear()
            self._cut[text] = items
        return items

    def _is_additive(self) -> bool:
        rng = random.Random(0)
        opening = 'Question: Is it "good"?\nAnswer with exactly one of: "Yes", "No"\nData:\n{\n'
        names = ["title", "review_text", "größe", "n", "a b", "価格"]
        values = [
            '"Great phone, 5 stars!"',
            "4.5",
            "-12",
            "true",
            '"  two  spaces "',
            '"line\\nbreak"',
            '"naïve café ☕"',
        ]
        values += [f'"a{token}b"' for token in self._kept[:20] if token.isprintable()]
        values += ['"日本語の説明"', '""', '"don\'t \\"quote\\" me"', "1000000", '"a" ', '"x:\\ty"', '"emoji 👍🏽."']
        try:
            turn = single_turn(self._tokenizer)
        except ModelError:
            turn = Turn((), "")
        before, after = self._frame(turn, opening, "}")
        samples = [*values, *rng.choices(values, k=100)]
        while samples:
            cells = [f'"{rng.choice(names)}": {samples.pop()},\n' for _ in range(min(rng.randint(1, 6), len(samples)))]
            joined = np.concatenate([before, *self.encode_cells(cells), after])
            if not np.array_equal(joined, self._wholes(turn, ["".join([opening, *cells, "}"])])[0]):
                return False
        return True


def load_tokenizer(
    source: str | os.PathLike[str], *, eos_token_ids: Sequence[int] = (), trust_remote_code: bool = False
) -> PromptTokenizer:
    """The tokenizer of a model folder or hub id; raises ModelError."""
    import transformers

    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer.json, which text prompts need")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else str(source), trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer of {str(source)!r}: {error}") from error
    return PromptTokenizer(tokenizer, eos_token_ids=eos_token_ids)
