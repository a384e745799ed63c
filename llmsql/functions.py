"""The SQL functions: their names, positional arguments, options and result types."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmsql.errors import CallError


@dataclass(frozen=True)
class Function:
    """One SQL function. `leading` counts the arguments before the fields: prompt, then labels where there are any."""

    name: str
    sql_type: str
    leading: int
    usage: str
    options: tuple[str, ...]


COMMON_OPTIONS = ("system", "on_error", "reorder", "model")
FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function(
            "llm",
            "VARCHAR",
            1,
            "llm(prompt, field…)",
            ("max_tokens", "temperature", "seed", "choices", *COMMON_OPTIONS),
        ),
        Function("llm_filter", "BOOLEAN", 1, "llm_filter(prompt, field…)", COMMON_OPTIONS),
        Function("llm_classify", "VARCHAR", 2, "llm_classify(prompt, labels, field…)", COMMON_OPTIONS),
    )
}
# Named by the design and by peers, but not built yet: said so by name instead of "unknown option".
PLANNED_OPTIONS = ("return_type", "schema", "regex", "adapter", "unordered")
PLANNED_FUNCTIONS = ("llm_extract", "llm_score", "llm_agg")
FILTER_CHOICES = ("Yes", "No")


@dataclass(frozen=True)
class Call:
    """What is asked of every row: all of a call but its fields. Equal calls on equal fields have equal answers.

    `prompt` is None when the prompt is not constant and comes as the first column of the stage's input.
    `choices` are the texts the answer is constrained to, or None for free text.
    """

    function: str
    prompt: str | None
    choices: tuple[str, ...] | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    system: str | None = None
    on_error: str | None = None
    reorder: bool = True
    model: str | None = None

    @property
    def sql_type(self) -> str:
        """The DuckDB type of the call's value."""
        return FUNCTIONS[self.function].sql_type

    def with_prompt(self, prompt: str) -> Call:
        """The same call with its prompt known."""
        return replace(self, prompt=prompt)

    def options(self) -> dict[str, Any]:
        """The options that a `Model` sees: function, choices and those the user set."""
        shown = asdict(self)
        del shown["prompt"], shown["on_error"], shown["reorder"], shown["model"]
        if self.choices is not None:
            shown["choices"] = list(self.choices)
        return {name: value for name, value in shown.items() if value is not None}

    def to_json(self) -> str:
        """A text that `from_json` turns back into an equal call."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Call:
        """The call that `to_json` wrote."""
        parts = json.loads(text)
        if parts["choices"] is not None:
            parts["choices"] = tuple(parts["choices"])
        return cls(**parts)


def make_call(
    function: str, prompt: str | None, labels: Sequence[Any] | None = None, options: Mapping[str, Any] | None = None
) -> Call:
    """Check a call's constant parts and put them together.

    Raises:
        CallError: an unknown or ill-typed option, labels missing, empty or repeated.
    """
    options = dict(options or {})
    spec = FUNCTIONS[function]
    _check_option_names(spec, options)
    choices = options.pop("choices", None)
    if function == "llm_filter":
        choices = FILTER_CHOICES
    elif function == "llm_classify":
        choices = labels
    if choices is not None:
        choices = _check_choices(spec, choices)
    for name, check, wanted in _OPTION_CHECKS:
        if options.get(name) is not None and not check(options[name]):
            raise CallError(f"{function}: option {name!r} must be {wanted}, not {options[name]!r}")
    options = {name: value for name, value in options.items() if value is not None}
    return Call(function=function, prompt=prompt, choices=choices, **options)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_OPTION_CHECKS: tuple[tuple[str, Any, str], ...] = (
    ("max_tokens", lambda v: _is_int(v) and v >= 1, "a whole number of at least 1"),
    ("temperature", lambda v: (_is_int(v) or isinstance(v, float)) and v >= 0, "a number of at least 0"),
    ("seed", lambda v: _is_int(v) and v >= 0, "a whole number of at least 0"),
    ("system", lambda v: isinstance(v, str), "a text"),
    ("model", lambda v: isinstance(v, str), "a model's name"),
    ("on_error", lambda v: v in ("null", "fail"), "'null' or 'fail'"),
    ("reorder", lambda v: isinstance(v, bool), "true or false"),
)


def _check_option_names(spec: Function, options: Mapping[str, Any]) -> None:
    for name in options:
        if name in spec.options:
            continue
        if name in PLANNED_OPTIONS:
            raise CallError(f"{spec.name}: option {name!r} is not available in this version of llmsql")
        close = difflib.get_close_matches(name, spec.options, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its options are: {', '.join(sorted(spec.options))}"
        raise CallError(f"{spec.name} has no option {name!r}; {hint}")


def _check_choices(spec: Function, choices: Any) -> tuple[str, ...]:
    what = "labels" if spec.name == "llm_classify" else "choices"
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise CallError(f"{spec.name}: {what} must be a list of texts such as ['a', 'b'], not {choices!r}")
    if not choices:
        raise CallError(f"{spec.name}: the list of {what} is empty")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise CallError(f"{spec.name}: each of the {what} must be a text that is not empty, not {choice!r}")
    repeated = sorted({choice for choice in choices if list(choices).count(choice) > 1})
    if repeated:
        raise CallError(f"{spec.name}: {what} given twice: {', '.join(map(repr, repeated))}")
    return tuple(choices)
