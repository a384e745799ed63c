"""What a model's chat template puts around the text of a single user turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER, _SYSTEM, _ANSWER = "llmsqlusercontent", "llmsqlsystemcontent", "llmsqlanswercontent"
_PLAIN_SUFFIX = "\n\nAnswer:\n"  # for tokenizers without a chat template


@dataclass(frozen=True)
class Turn:
    """The text of a conversation of one turn, without the user's own."""

    before: tuple[
        tuple[str, bool], ...
    ]  # pieces, and whether they are data (the system text), which holds no control tokens
    after: str  # up to where the answer begins
    trims: bool = False  # whether the template strips the user's text
    gap: str = ""  # what the template puts between the prompt and an answer


def single_turn(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Turn:
    """Rendered with stand-ins for the texts, so that these may hold anything.

    Where the chat template has no system message, the system text precedes the user's. Thinking is switched off in
    templates that have the switch. Without a chat template: the plain texts, after the begin-of-text token.
    Raises ModelError for a template that does not show the user's text exactly once.
    """
    if not tokenizer.chat_template:
        begins = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer.encode("")
        start = str(tokenizer.bos_token) if begins else ""
        return Turn(((start, False), (f"{system}\n\n" if system is not None else "", True)), _PLAIN_SUFFIX)
    rendered = None if system is None else _render(tokenizer, ("system", _SYSTEM), ("user", _USER))
    folds = system is not None and (rendered is None or rendered.count(_SYSTEM) != 1)
    user = f"{_SYSTEM}\n\n{_USER}" if folds else _USER
    if folds or system is None:
        rendered = _render(tokenizer, ("user", user))
    if rendered is None or rendered.count(_USER) != 1:
        raise ModelError("the tokenizer's chat template cannot show a single user message")
    text, after = rendered.split(_USER)
    before: tuple[tuple[str, bool], ...] = ((text, False),)
    if system is not None:
        left, right = text.split(_SYSTEM)
        turns = [("user", f"{system}\n\n{_USER}")] if folds else [("system", system), ("user", _USER)]
        before = (
            (left, False),
            (_shown(_render(tokenizer, *turns), left, right + _USER + after, system), True),
            (right, False),
        )
    padded = _render(tokenizer, ("user", f"\n {_USER}\n "))
    trims = padded is not None and f"\n {_USER}" not in padded and f"{_USER}\n " not in padded
    return Turn(before, after, trims, _gap(tokenizer))


def _shown(rendered: str | None, left: str, right: str, text: str) -> str:
    """`text` as the template shows it; many strip it."""
    if rendered is not None and rendered.startswith(left) and rendered.endswith(right):
        return rendered[len(left) : len(rendered) - len(right)]
    return text


def _gap(tokenizer: PreTrainedTokenizerBase) -> str:
    """White space between the end of the prompt and an answer that the template shows: a space in Llama 2's."""
    asked = _render(tokenizer, ("user", _USER))
    answered = _render(tokenizer, ("user", _USER), ("assistant", _ANSWER), to_be_answered=False)
    if asked is None or answered is None or not answered.startswith(asked) or _ANSWER not in answered:
        return ""
    gap = answered[len(asked) :].split(_ANSWER)[0]
    return gap if gap.isspace() else ""


def _render(tokenizer: PreTrainedTokenizerBase, *turns: tuple[str, str], to_be_answered: bool = True) -> str | None:
    """The conversation as text, or None if the template refuses it."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=to_be_answered, enable_thinking=False
        )
    except Exception:
        return None  # templates refuse by raising whatever they like
    return str(text)
