"""Tokens of text that is data: no control token is ever recognised in it, nor produced by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]

Place = Literal["start", "segment", "inside"]
"""Where a text stands: first of all, right after a control token, or after other text."""


class PlainTextTokenizer:
    """Copies of a tokenizer that know no control tokens, so that a text spelling `<|im_end|>` is just its characters.

    Some tokenizers put a space in front of the first text, or of every text between control tokens; so there is a copy
    for each place.
    """

    def __init__(self, state: Mapping[str, Any], control: Mapping[int, str], kept: Iterable[int]) -> None:
        """`state` is tokenizer.json; of its added tokens only `kept` ones may come out; `control` are the others."""
        from tokenizers import Tokenizer

        kept = set(kept)
        added = [token for token in state.get("added_tokens") or [] if token["id"] in kept]
        base = {**state, "added_tokens": added, "truncation": None, "padding": None}
        texts = {place: json.dumps(_without_prefix(base, place)) for place in ("start", "segment", "inside")}
        copies = {text: Tokenizer.from_str(text) for text in texts.values()}
        self._copies: dict[str, Any] = {place: copies[text] for place, text in texts.items()}
        self._control = dict(control)
        self._control_ids = np.array(sorted(control), np.int32)
        # Without the control tokens, kept ones outside the model's own vocabulary get other ids: translate them back.
        renamed = {self._copies["inside"].token_to_id(token["content"]): token["id"] for token in added}
        self._renamed = {data_id: token_id for data_id, token_id in renamed.items() if data_id != token_id}

    def encode(self, texts: Iterable[str], place: Place = "inside") -> list[TokenIds]:
        """Tokens of each text alone; fast for many texts at once. Lone surrogates become U+FFFD."""
        texts, copy = list(texts), self._copies[place]
        try:
            encodings = copy.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            texts = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
            encodings = copy.encode_batch_fast(texts, add_special_tokens=False)
        results = [self._ids(encoding) for encoding in encodings]
        if len(self._control_ids) and any(map(len, results)):
            owners = np.repeat(np.arange(len(results)), [len(ids) for ids in results])
            for index in np.unique(owners[np.isin(np.concatenate(results), self._control_ids)]).tolist():
                results[index] = self._encode_apart(texts[index], copy)
        return results

    def _encode_apart(self, text: str, copy: Any) -> TokenIds:
        """For vocabularies that hold control tokens as plain pieces: cut each spelled one after its first character."""
        spelled = sorted({name for name in self._control.values() if len(name) > 1}, key=len, reverse=True)
        pieces, rest = [], text
        while rest:
            hits = [(rest.find(name), name) for name in spelled if name in rest]
            cut = min(hits)[0] + 1 if hits else len(rest)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        ids: list[int] = []
        for piece in pieces:
            ids += self._ids(copy.encode(piece, add_special_tokens=False)).tolist()
            copy = self._copies["inside"]
        return np.array([i for i in ids if i not in self._control], np.int32)

    def _ids(self, encoding: Any) -> TokenIds:
        ids = encoding.ids
        return np.array([self._renamed.get(i, i) for i in ids] if self._renamed else ids, np.int32)


def _without_prefix(state: dict[str, Any], place: Place) -> dict[str, Any]:
    """The tokenizer without the steps that put a space in front of a text which stands at another place."""
    if place == "start":
        return state
    return {
        **state,
        "normalizer": _changed(state.get("normalizer"), "normalizers", place),
        "pre_tokenizer": _changed(state.get("pre_tokenizer"), "pretokenizers", place),
    }


def _changed(step: dict[str, Any] | None, parts: str, place: Place) -> dict[str, Any] | None:
    if step is None:
        return None
    kind = step["type"]
    if kind == "Sequence":
        steps = [changed for part in step[parts] if (changed := _changed(part, parts, place)) is not None]
        return {**step, parts: steps}
    if kind == "Metaspace" and (place == "inside" or step.get("prepend_scheme") == "first"):
        return {**step, "prepend_scheme": "never"}
    if kind == "ByteLevel" and place == "inside":
        return {**step, "add_prefix_space": False}
    return None if kind == "Prepend" and place == "inside" else step
