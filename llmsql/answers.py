"""From the text of an answer to the value of the call's SQL type."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from llmsql.functions import Call
from llmsql.types import shortened


def parse_answer(call: Call, text: str) -> Any:
    """The value of `call` for the answer `text`.

    Raises:
        ValueError: the text is no value of the call's type; the message says what was wanted and what came.
    """
    if call.function == "llm_filter":
        try:
            return call.answer_type.value(text)
        except ValueError:
            raise ValueError(f"expected Yes or No, the model answered {shortened(text)}") from None
    if call.function == "llm_score":
        return _score(call, text)
    if call.regex is not None:
        return _matched(call.regex, text)
    if call.answer_type.kind != "text":
        return call.answer_type.value(text)
    if call.choices is not None:
        if text in call.choices:
            return text
        stripped = text.strip()
        if stripped in call.choices:
            return stripped
        raise ValueError(f"expected one of {list(call.choices)}, the model answered {shortened(text)}")
    return text


def arrow_type(call: Call) -> pa.DataType:
    """The Arrow type of the call's value."""
    return call.value_type.arrow


def _score(call: Call, text: str) -> float:
    assert call.minimum is not None
    assert call.maximum is not None
    value = call.answer_type.value(text)
    if not call.minimum <= value <= call.maximum:
        raise ValueError(f"expected {call.minimum:g} to {call.maximum:g}, the model answered {shortened(text)}")
    return float(value)


def _matched(regex: str, text: str) -> str:
    try:
        matches = re.fullmatch(regex, text, re.ASCII) is not None
    except re.error:
        matches = True  # not Python's syntax; the engine has constrained the answer
    if not matches:
        raise ValueError(f"expected a match of {regex!r}, the model answered {shortened(text)}")
    return text
