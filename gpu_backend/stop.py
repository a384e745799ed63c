"""Stop texts, found as tokens come: they may begin and end inside tokens, and tokens inside characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # how a tokenizer shows a character of which bytes are missing


class StopFinder:
    """Looks for the first of some texts in the decoded text of one output.

    New text is what a window of the last tokens decodes to beyond the window's older part, so that each token costs the
    same; the window begins one token group earlier, because some tokenizers drop the space at the very beginning.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._longest = max(map(len, stops))
        self._token_ids: list[int] = []
        self._old: list[int] = []  # tokens whose text is in `_text`, the last group of them
        self._new: list[int] = []  # tokens whose text is not, because a character is not complete
        self._text = ""

    def push(self, token_id: int) -> str | None:
        """The text before the first stop text, if it is complete with this token; None otherwise."""
        self._token_ids.append(token_id)
        self._new.append(token_id)
        known, text = self._decode(self._old), self._decode([*self._old, *self._new])
        if len(text) <= len(known) or text.endswith(_UNFINISHED):
            return None
        self._old, self._new = self._new, []
        begin = max(0, len(self._text) - self._longest + 1)  # one that ended earlier would have been found
        self._text += text[len(known) :]
        if self._first(self._text, begin) is None:
            return None
        whole = self._decode(self._token_ids)  # differs from the windows' text where bytes are no characters
        return next(before for text in (whole, self._text) if (before := self._first(text)) is not None)

    def _first(self, text: str, begin: int = 0) -> str | None:
        """What precedes the first stop text in `text`, or None."""
        found = [place for stop in self._stops if (place := text.find(stop, begin)) >= 0]
        return text[: min(found)] if found else None
