"""JSON string literals, and the little arithmetic of text arrays that rendering needs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.large_string()
HARMLESS_BYTES = bytes(code for code in range(32, 256) if chr(code) not in '"\\')
SHORT_ESCAPES = {'"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def quote(texts: pa.Array) -> pa.Array:
    """JSON string literals of a large_string array; unicode stays as it is."""
    present = _escaped_characters(texts)
    if "\\" in present:
        texts = pc.replace_substring(texts, "\\", "\\\\")
    for character in present:
        if character != "\\":
            texts = pc.replace_substring(texts, character, SHORT_ESCAPES.get(character, f"\\u{ord(character):04x}"))
    return join(text('"'), texts, text('"'))


def _escaped_characters(texts: pa.Array) -> list[str]:
    """The characters that JSON escapes, as far as the texts hold them (or their buffer does: more is harmless)."""
    data = texts.buffers()[2]
    found = b"" if data is None else data.to_pybytes().translate(None, delete=HARMLESS_BYTES)
    return [chr(code) for code in sorted(set(found))]


def text(value: str) -> pa.Scalar:
    """A large_string scalar."""
    return pa.scalar(value, TEXT)


def join(*parts: pa.Array | pa.Scalar) -> pa.Array:
    """The concatenation of texts, element by element; NULL where one of them is NULL."""
    return pc.binary_join_element_wise(*parts, text(""))


def quote_name(name: str) -> str:
    """The JSON string literal of one name."""
    literal: str = quote(pa.array([name], TEXT))[0].as_py()
    return literal
