"""From the text of an answer to the value of the call's SQL type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from llmsql.functions import Call

ARROW_TYPES = {"VARCHAR": pa.string(), "BOOLEAN": pa.bool_()}
YES = frozenset({"yes", "true", "1", "y", "t"})
NO = frozenset({"no", "false", "0", "n", "f"})


def parse_answer(call: Call, text: str) -> Any:
    """The value of `call` for the answer `text`.

    Raises:
        ValueError: the text is no value of the call's type; the message says what was wanted and what came.
    """
    if call.function == "llm_filter":
        word = text.strip().strip(".").lower()
        if word in YES:
            return True
        if word in NO:
            return False
        raise ValueError(f"expected Yes or No, the model answered {_shortened(text)}")
    if call.choices is not None:
        if text in call.choices:
            return text
        stripped = text.strip()
        if stripped in call.choices:
            return stripped
        raise ValueError(f"expected one of {list(call.choices)}, the model answered {_shortened(text)}")
    return text


def arrow_type(call: Call) -> pa.DataType:
    """The Arrow type of the call's value."""
    return ARROW_TYPES[call.sql_type]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
