"""The text around the data: the frame of a prompt, and placeholders in it.

The frame is one user turn. Without placeholders it reads

    Question: {prompt}
    Answer with exactly one of: "Yes", "No"        (only when the answer is constrained, see `Call.wanted`)
    Data:
    {
    "title": "...",
    "rating": 4.5,
    }

and the cells between the braces come from `llmsql.optimizer.render`, in the order that the optimizer chose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmsql.errors import CallError

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w./ -]*)\}")


def question(prompt: str, wanted: str | None) -> str:
    """The head of the user turn, up to the line before the data; `wanted` says what an answer looks like.

    >>> print(question("Is it positive?", 'Answer with exactly one of: "Yes", "No"'), end="")
    Question: Is it positive?
    Answer with exactly one of: "Yes", "No"
    """
    return f"Question: {prompt}\n" + ("" if wanted is None else f"{wanted}\n")


DATA_OPEN = "Data:\n{\n"
DATA_CLOSE = "}"


@dataclass(frozen=True)
class Template:
    """A prompt cut at its placeholders: `texts[0] {fields[0]} texts[1] ... texts[-1]`."""

    texts: tuple[str, ...]
    fields: tuple[str, ...]

    def fill(self, values: Sequence[str]) -> str:
        """The prompt with `values`, one for each of `fields`, in their places."""
        pieces = [self.texts[0]]
        for value, text in zip(values, self.texts[1:]):
            pieces += [value, text]
        return "".join(pieces)


def placeholders(prompt: str) -> list[str]:
    """The names in the `{field}` placeholders of a prompt, each once.

    >>> placeholders("Is {body} about {title}, as {Title} says? {{no}}")
    ['body', 'Title']
    """
    names = [match.group(1) for match in PLACEHOLDER.finditer(prompt) if match.group(1)]
    return list({name.lower(): name for name in names}.values())


def parse_template(prompt: str, names: Sequence[str]) -> Template | None:
    """Cut `prompt` at its `{field}` placeholders; None when it has none, and is then used as it is written.

    Field names are matched without regard to case, as SQL does. In a prompt with placeholders `{{` and `}}` stand for
    braces.

    Raises:
        CallError: a placeholder names no field.

    >>> parse_template("Topic of {body}?", ["body"])
    Template(texts=('Topic of ', '?'), fields=('body',))
    """
    by_name = {name.lower(): name for name in names}
    texts, placed, last, text = [], [], 0, ""
    for match in PLACEHOLDER.finditer(prompt):
        text += prompt[last : match.start()]
        last = match.end()
        if match.group(1) is None:
            text += match.group(0)[0]
            continue
        name = by_name.get(match.group(1).lower())
        if name is None:
            raise CallError(
                f"the prompt has a placeholder {match.group(0)} but the call has no such field; "
                f"its fields are: {', '.join(names) or 'none'} (write {{{{ and }}}} for braces)"
            )
        texts.append(text)
        placed.append(name)
        text = ""
    if not placed:
        return None
    texts.append(text + prompt[last:])
    return Template(tuple(texts), tuple(placed))
