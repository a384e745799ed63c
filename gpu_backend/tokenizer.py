"""Text to prompt tokens: cells one by one, never a control token from a cell, and the chat frame around them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = npt.NDArray[np.int32]

_USER, _SYSTEM = "llmsqlusercontent", "llmsqlsystemcontent"  # stand in for the texts while the template is rendered
_PLAIN_SUFFIX = "\n\nAnswer:\n"  # for tokenizers without a chat template


class PromptTokenizer:
    """A Hugging Face tokenizer for prompts whose text is data.

    Data is tokenized with another copy of the tokenizer that knows no control tokens, so a cell that spells
    `<|im_end|>` becomes the tokens of these characters. Tokens added only for runs of white space are kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, eos_token_ids: Sequence[int] = ()) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json, which the engine needs")
        self._tokenizer = tokenizer
        state = self.backend_state()
        added = state.get("added_tokens") or []
        state["added_tokens"] = [t for t in added if not t["special"] and not t["content"].strip()]
        kept = {t["id"] for t in state["added_tokens"]}
        self._control = {t["id"]: t["content"] for t in added if t["id"] not in kept}
        for name, token_id in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids):
            self._control.setdefault(token_id, name)
        self._control_ids = np.array(sorted(self._control), np.int32)
        self._data: Any = Tokenizer.from_str(json.dumps(state))
        # Without the control tokens, kept ones outside the model's own vocabulary get other ids: translate them back.
        renamed = {self._data.token_to_id(t["content"]): t["id"] for t in state["added_tokens"]}
        self._renamed = {data_id: token_id for data_id, token_id in renamed.items() if data_id != token_id}
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
        """Number of token ids, control tokens included."""
        return len(self._tokenizer)

    def backend_state(self) -> dict[str, Any]:
        """The whole tokenizer, control tokens included, as in tokenizer.json; without truncation and padding."""
        state: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        return state

    def encode(self, text: str) -> TokenIds:
        """Tokens of data: no special token is added, and none is recognised in the text."""
        return self.encode_cells([text])[0]

    def encode_cells(self, texts: Iterable[str]) -> list[TokenIds]:
        """Tokens of each text alone; fast for many texts at once. Lone surrogates become U+FFFD."""
        texts = list(texts)
        try:
            encodings = self._data.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            texts = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
            encodings = self._data.encode_batch_fast(texts, add_special_tokens=False)
        cells = [self._ids(encoding) for encoding in encodings]
        if len(self._control_ids) and any(map(len, cells)):
            lengths = np.array([len(ids) for ids in cells])
            owners = np.repeat(np.arange(len(cells)), lengths)
            for index in np.unique(owners[np.isin(np.concatenate(cells), self._control_ids)]).tolist():
                cells[index] = self._encode_apart(texts[index])
        return cells

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def chat_frame(self, system: str | None = None) -> tuple[TokenIds, TokenIds]:
        """What stands before and after the user's text in a conversation of one turn, up to the answer.

        Where the chat template has no system message, the system text precedes the user's. Thinking is switched off
        in templates that have the switch. Without a chat template: the plain texts, after the begin-of-text token.
        The text equals the template's own; the tokens do, too, unless the template puts a space before the user's text,
        which is then a token of its own.
        Raises ModelError for a template that does not show the user's text exactly once.
        """
        if not self._tokenizer.chat_template:
            head = "" if system is None else f"{system}\n\n"
            start = [i for i in self._tokenizer.encode("") if i == self._tokenizer.bos_token_id][:1]
            return np.concatenate([np.array(start, np.int32), self.encode(head)]), self.encode(_PLAIN_SUFFIX)
        rendered = None if system is None else self._render([("system", _SYSTEM), ("user", _USER)])
        if rendered is None or rendered.count(_SYSTEM) != 1:
            user = _USER if system is None else f"{_SYSTEM}\n\n{_USER}"
            rendered = self._render([("user", user)])
        if rendered is None or rendered.count(_USER) != 1:
            raise ModelError("the tokenizer's chat template cannot show a single user message")
        before, after = rendered.split(_USER)
        if system is None:
            return self._encode_frame(before), self._encode_frame(after)
        left, right = before.split(_SYSTEM)
        pieces = [self._encode_frame(left), self.encode(system), self._encode_frame(right)]
        return np.concatenate(pieces), self._encode_frame(after)

    def _render(self, messages: list[tuple[str, str]]) -> str | None:
        """The conversation as text, or None if the template refuses it."""
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception:
            return None  # templates refuse by raising whatever they like
        return str(text)

    def _encode_frame(self, text: str) -> TokenIds:
        """Tokens of a part of the template, where control tokens are meant."""
        return np.array(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def _encode_apart(self, text: str) -> TokenIds:
        """For vocabularies that hold control tokens as plain pieces: cut each spelled one after its first character."""
        spelled = sorted({name for name in self._control.values() if len(name) > 1}, key=len, reverse=True)
        pieces, rest = [], text
        while rest:
            hits = [(rest.find(name), name) for name in spelled if name in rest]
            cut = min(hits)[0] + 1 if hits else len(rest)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        ids = [i for piece in pieces for i in self._ids(self._data.encode(piece, add_special_tokens=False)).tolist()]
        return np.array([i for i in ids if i not in self._control], np.int32)

    def _ids(self, encoding: Any) -> TokenIds:
        ids = encoding.ids
        return np.array([self._renamed.get(i, i) for i in ids] if self._renamed else ids, np.int32)

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
        values += ['"日本語の説明"', '""', '"don\'t \\"quote\\" me"', "1000000", '"a" ', '"x:\\ty"', '"emoji 👍🏽."']
        for _ in range(40):
            cells = [f'"{rng.choice(names)}": {rng.choice(values)},\n' for _ in range(rng.randint(1, 6))]
            parts = [opening, *cells, "}"]
            joined = np.concatenate(self.encode_cells(parts))
            if not np.array_equal(joined, self.encode("".join(parts))):
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
