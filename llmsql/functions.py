"""The SQL functions: their names, positional arguments, options and result types."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from llmsql.errors import CallError
from llmsql.types import AnswerType, parse_type, schema_type, shortened

cached_type = lru_cache(maxsize=256)(parse_type)


@dataclass(frozen=True)
class Function:
    """One SQL function. `leading` counts the arguments before the fields: prompt, then `second` where there is one.

    `sql_type` is the type of its values when no option says otherwise. Of a function whose values have a type of their
    own for each call (llm_extract) it is that of their text.
    """

    name: str
    sql_type: str
    leading: int
    usage: str
    options: tuple[str, ...]
    second: str | None = None

    @property
    def second_name(self) -> str | None:
        """The name by which the argument behind the prompt can be given, where there is one."""
        return None if self.second is None else self.second.removeprefix("a ")


COMMON_OPTIONS = ("system", "on_error", "reorder", "unordered", "model")
FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function(
            "llm",
            "VARCHAR",
            1,
            "llm(prompt, field…)",
            ("max_tokens", "temperature", "seed", "choices", "return_type", "schema", "regex", *COMMON_OPTIONS),
        ),
        Function("llm_filter", "BOOLEAN", 1, "llm_filter(prompt, field…)", COMMON_OPTIONS),
        Function("llm_classify", "VARCHAR", 2, "llm_classify(prompt, labels, field…)", COMMON_OPTIONS, "labels"),
        Function(
            "llm_extract",
            "VARCHAR",
            2,
            "llm_extract(prompt, schema, field…)",
            ("max_tokens", "temperature", "seed", *COMMON_OPTIONS),
            "a schema",
        ),
        Function("llm_score", "DOUBLE", 1, "llm_score(prompt, field…)", ("min", "max", *COMMON_OPTIONS)),
        Function(
            "llm_agg",
            "VARCHAR",
            1,
            "llm_agg(prompt, field…)",
            ("max_tokens", "temperature", "seed", "distinct_rows", "system", "on_error", "reorder", "model"),
        ),
    )
}
# Named by the design and by peers, but not built yet: said so by name instead of "unknown option".
PLANNED_OPTIONS = ("adapter",)
FILTER_CHOICES = ("Yes", "No")
RETURN = "return"  # of on_error: the value is a struct of the answer and the error
SCORES = (0.0, 10.0)
MAX_SCORE_LABELS = 101  # whole numbers are compared as labels up to so many; beyond, the number is written
JSON_TOKENS = 512  # default length of an answer in JSON, at least


@dataclass(frozen=True)
class Call:
    """What is asked of every row: all of a call but its fields. Equal calls on equal fields have equal answers.

    `prompt` is None when the prompt is not constant and comes as the first column of the stage's input.
    `choices` are the texts the answer is constrained to, or None for free text.
    `return_type` is the SQL type of the value when it is not the function's own; `schema` the JSON schema that the
    answer is constrained to, `regex` a regular expression, `minimum` and `maximum` the bounds of a score.
    `distinct_rows`: llm_agg shows equal rows of a group once.
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
    return_type: str | None = None
    schema: str | None = None
    regex: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    unordered: tuple[str, ...] = ()
    distinct_rows: bool = False

    @property
    def is_aggregate(self) -> bool:
        """Whether it is asked about the rows of a group: its first field is a list of them, the others name it."""
        return self.function == "llm_agg"

    @property
    def returns_error(self) -> bool:
        """Whether its value is a struct of the answer and of why there is none."""
        return self.on_error == RETURN

    @property
    def sql_type(self) -> str:
        """The DuckDB type of the call's value."""
        return f"STRUCT(answer {self.answer_type.sql}, error VARCHAR)" if self.returns_error else self.answer_type.sql

    @property
    def value_type(self) -> AnswerType:
        """The type of the call's value, in all its forms."""
        return cached_type(self.sql_type)

    @property
    def answer_type(self) -> AnswerType:
        """The type of the model's answer, which is the value unless the call `returns_error`."""
        return cached_type(self.return_type or FUNCTIONS[self.function].sql_type)

    @property
    def is_free(self) -> bool:
        """Whether any text is an answer, also one that was cut."""
        return self.choices is None and self.regex is None and self.answer_type.kind == "text"

    @property
    def wanted(self) -> str | None:
        """The line of the prompt that says what an answer looks like, if it says so."""
        if self.function == "llm_score":
            kind = "a number" if self.choices is None else "a whole number"
            return f"Answer with {kind} from {self.minimum:g} to {self.maximum:g}"
        if self.choices is not None:
            labels = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in self.choices)
            return f"Answer with exactly one of: {labels}"
        if self.regex is not None:
            return f"Answer with a text that matches this regular expression: {self.regex}"
        if self.schema is not None:
            return f"Answer with JSON of this schema: {self.schema}"
        hint = self.answer_type.hint
        return None if hint is None else f"Answer with {hint}"

    def output_tokens(self, default: int) -> int:
        """The longest answer in tokens, where the session's setting is `default`."""
        if self.max_tokens is not None:
            return self.max_tokens
        return max(default, JSON_TOKENS) if self.schema is not None else default

    def with_prompt(self, prompt: str) -> Call:
        """The same call with its prompt known."""
        return replace(self, prompt=prompt)

    def options(self) -> dict[str, Any]:
        """The options that a `Model` sees: function, choices and those the user set."""
        shown = asdict(self)
        del shown["prompt"], shown["on_error"], shown["reorder"], shown["model"], shown["unordered"]
        del shown["distinct_rows"]
        if self.choices is not None:
            shown["choices"] = list(self.choices)
        if self.schema is not None:
            shown["schema"] = json.loads(self.schema)
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
        parts["unordered"] = tuple(parts["unordered"])
        return cls(**parts)


def make_call(function: str, prompt: str | None, second: Any = None, options: Mapping[str, Any] | None = None) -> Call:
    """Check a call's constant parts and put them together; `second` are its labels, or its schema.

    Raises:
        CallError: an unknown or ill-typed option, labels missing, empty or repeated, a schema that is none.
    """
    options = {name: value for name, value in dict(options or {}).items() if value is not None}
    spec = FUNCTIONS[function]
    check_option_names(spec, options)
    for name, check, wanted in _OPTION_CHECKS:
        if name in options and not check(options[name]):
            raise CallError(f"{function}: option {name!r} must be {wanted}, not {options[name]!r}")
    if function == "llm_filter":
        options["choices"] = FILTER_CHOICES
    elif function == "llm_classify":
        options["choices"] = second
    elif function == "llm_extract":
        options["schema"] = second
    elif function == "llm_score":
        options.update(_score_options(options.pop("min", SCORES[0]), options.pop("max", SCORES[1])))
    constraints = [name for name in ("choices", "schema", "regex", "return_type") if name in options]
    if function == "llm" and len(constraints) > 1:
        raise CallError(f"{function}: give one of the options {' and '.join(map(repr, constraints))}, not both")
    if "choices" in options or function == "llm_classify":
        options["choices"] = _check_choices(spec, options.get("choices"))
    if "schema" in options or function == "llm_extract":
        options.update(_schema_options(spec, options.get("schema")))
    for kind in ("regex", "schema"):
        if kind in options:
            _check_grammar(spec, kind, options[kind])
    if "return_type" in options:
        options.update(_type_options(spec, options["return_type"]))
    if "unordered" in options:
        options["unordered"] = tuple(options["unordered"])
    return Call(function=function, prompt=prompt, **options)


def check_option_names(spec: Function, names: Iterable[str], settings: Sequence[str] = ()) -> None:
    """Whether a function has options of these names; where it is given `settings` beside its options, or those.

    Raises:
        CallError: it has not; with the option that was meant, if one is near, and all that there are.
    """
    known = sorted({*spec.options, *filter(None, [spec.second_name])})
    for name in names:
        if name in known or name in settings:
            continue
        if name in PLANNED_OPTIONS:
            raise CallError(f"{spec.name}: option {name!r} is not available in this version of llmsql")
        close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name, settings, n=1)
        meant = f"did you mean {close[0]!r}? Its" if close else "its"
        beside = ", and the settings of llmsql.connect" if settings else ""
        raise CallError(f"{spec.name} has no option {name!r}; {meant} options are: {', '.join(known)}{beside}")


@lru_cache(maxsize=256)
def _grammar_problem(kind: str, text: str) -> str | None:
    """Why answers cannot be constrained to a regular expression or a JSON schema; None where they can."""
    try:
        from llguidance import LLMatcher
    except ImportError:  # without the engine's libraries nothing is constrained here
        return None
    grammar = LLMatcher.grammar_from_regex(text) if kind == "regex" else LLMatcher.grammar_from_json_schema(text)
    problem: str = LLMatcher.validate_grammar(grammar)
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[0]) if lines else None


def _check_grammar(spec: Function, kind: str, text: str) -> None:
    problem = _grammar_problem(kind, text)
    if problem is not None:
        raise CallError(f"{spec.name}: option {kind!r}: {shortened(text)}: {problem.removeprefix('error: ')}")


def _type_options(spec: Function, sql: str) -> dict[str, Any]:
    """What a declared type asks of the answer: a choice, a pattern (known from the type), or JSON."""
    try:
        declared = parse_type(sql)
    except CallError as problem:
        raise CallError(f"{spec.name}: {problem}") from None
    options: dict[str, Any] = {"return_type": declared.sql}
    if declared.kind == "boolean":
        options["choices"] = FILTER_CHOICES
    elif declared.kind == "enum":
        options["choices"] = declared.labels
    elif declared.is_json:
        options["schema"] = json.dumps(declared.json_schema(), ensure_ascii=False)
    return options


def _schema_options(spec: Function, schema: Any) -> dict[str, Any]:
    """The type and the JSON schema of a schema given as JSON, as a value of SQL, or as a SQL type."""
    text = schema.strip() if isinstance(schema, str) else ""
    try:
        if isinstance(schema, str) and not text.startswith("{"):
            declared = parse_type(text)
            if not declared.is_json:
                raise CallError(f"{text!r} has no members; write one such as 'STRUCT(name VARCHAR, born DATE)'")
            found: Any = declared.json_schema()
        else:
            declared = schema_type(schema)
            found = json.loads(schema) if isinstance(schema, str) else schema
    except CallError as problem:
        raise CallError(f"{spec.name}: {problem}") from None
    return {"return_type": declared.sql, "schema": json.dumps(found, ensure_ascii=False)}


def _score_options(minimum: float, maximum: float) -> dict[str, Any]:
    low, high = float(minimum), float(maximum)
    if not low < high:
        raise CallError(f"llm_score: 'min' must be less than 'max', not {minimum!r} and {maximum!r}")
    options: dict[str, Any] = {"minimum": low, "maximum": high}
    if low == int(low) and high == int(high) and high - low < MAX_SCORE_LABELS:
        options["choices"] = [str(score) for score in range(int(low), int(high) + 1)]
    return options


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_regex(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


_OPTION_CHECKS: tuple[tuple[str, Any, str], ...] = (
    ("max_tokens", lambda v: _is_int(v) and v >= 1, "a whole number of at least 1"),
    ("temperature", lambda v: _is_number(v) and v >= 0, "a number of at least 0"),
    ("seed", lambda v: _is_int(v) and v >= 0, "a whole number of at least 0"),
    ("min", _is_number, "a number"),
    ("max", _is_number, "a number"),
    ("return_type", lambda v: isinstance(v, str), "a SQL type such as 'INTEGER'"),
    ("regex", _is_regex, "a regular expression"),
    ("unordered", _are_names, "a list of field names such as ['contexts']"),
    ("system", lambda v: isinstance(v, str), "a text"),
    ("model", lambda v: isinstance(v, str), "a model's name"),
    ("on_error", lambda v: v in ("null", "fail", RETURN), "'null', 'fail' or 'return'"),
    ("reorder", lambda v: isinstance(v, bool), "true or false"),
    ("distinct_rows", lambda v: isinstance(v, bool), "true or false"),
)


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
