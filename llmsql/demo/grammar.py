"""A small random grammar: rules whose texts name other rules in braces, `"Very {good} {thing}."`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

Rule = str | Callable[[random.Random], str]


def alternatives(text: str) -> list[str]:
    """The texts of a rule, which stand between ` | ` or on lines of their own."""
    return [part.strip() for part in re.split(r" \| |\n", text) if part.strip()]


class Grammar:
    """Expands rules at random, reproducibly for a seeded `random.Random`.

    A rule is one string of texts separated by ` | ` or line ends, or a function of the random generator. `{name}` in a
    text stands for a random text of that rule, `{Name}` for the same with a capital letter. Raises KeyError on
    construction when a text names a rule that does not exist.
    """

    def __init__(self, *rules: Mapping[str, Rule]) -> None:
        self._functions: dict[str, Callable[[random.Random], str]] = {}
        self._texts: dict[str, list[list[str]]] = {}
        for name, rule in ((name, rule) for group in rules for name, rule in group.items()):
            if callable(rule):
                self._functions[name] = rule
            else:
                # odd places of a split text are rule names, even places are literal
                self._texts[name] = [re.split(r"\{(\w+)\}", text) for text in alternatives(rule)]
        for name, texts in self._texts.items():
            for slot in (slot for parts in texts for slot in parts[1::2]):
                if slot[0].lower() + slot[1:] not in self._texts.keys() | self._functions.keys():
                    raise KeyError(f"rule {name!r} names {slot!r}, which is no rule")

    def expand(self, rng: random.Random, name: str, given: Mapping[str, str] | None = None) -> str:
        """One random text of the rule; `given` fixes the text of some slots."""
        if given is not None and name in given:
            return given[name]
        if name not in self._texts:
            if name in self._functions:
                return self._functions[name](rng)
            text = self.expand(rng, name[0].lower() + name[1:], given)
            return text[:1].upper() + text[1:]
        texts = self._texts[name]
        parts = texts[int(rng.random() * len(texts))]
        if len(parts) == 1:
            return parts[0]
        return "".join(part if place % 2 == 0 else self.expand(rng, part, given) for place, part in enumerate(parts))
