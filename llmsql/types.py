"""The types that an answer may be declared to have: their SQL, Arrow and JSON sides, and values from text."""

from __future__ import annotations

import datetime
import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from llmsql.errors import CallError

Kind = Literal["text", "boolean", "integer", "number", "decimal", "date", "time", "timestamp", "enum", "list", "struct"]

_INTEGERS = {
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
}
_SIMPLE: dict[str, tuple[Kind, pa.DataType]] = {
    "VARCHAR": ("text", pa.string()),
    "BOOLEAN": ("boolean", pa.bool_()),
    "DOUBLE": ("number", pa.float64()),
    "FLOAT": ("number", pa.float32()),
    "DATE": ("date", pa.date32()),
    "TIME": ("time", pa.time64("us")),
    "TIMESTAMP": ("timestamp", pa.timestamp("us")),
    **{name: ("integer", arrow) for name, arrow in _INTEGERS.items()},
}
_SAME = {"TEXT": "VARCHAR", "INT": "INTEGER", "REAL": "FLOAT", "DATETIME": "TIMESTAMP"}
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
# Of answers that are one bare value; what is too large for the type is an error of its row.
_PATTERNS: dict[Kind, str] = {
    "integer": r"-?(0|[1-9][0-9]{0,18})",
    "number": r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?",
    "decimal": r"-?(0|[1-9][0-9]{0,27})(\.[0-9]{1,10})?",
    "date": _DATE,
    "time": _TIME,
    "timestamp": f"{_DATE} {_TIME}",
}
_HINTS: dict[Kind, str] = {
    "integer": "a whole number",
    "number": "a number",
    "decimal": "a number",
    "date": "a date (YYYY-MM-DD)",
    "time": "a time (HH:MM:SS)",
    "timestamp": "a date and time (YYYY-MM-DD HH:MM:SS)",
}


@dataclass(frozen=True)
class AnswerType:
    """A type of answers. `members` are those of a struct by name, or the one of a list; `labels` those of an enum."""

    sql: str
    kind: Kind
    arrow: pa.DataType
    members: tuple[tuple[str, AnswerType], ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def pattern(self) -> str | None:
        """A regular expression for one bare value of the type; None for text, enums and what is written as JSON."""
        return _PATTERNS.get(self.kind)

    @property
    def hint(self) -> str | None:
        """How to say in a prompt what is wanted, for types with a `pattern`."""
        return _HINTS.get(self.kind)

    @property
    def is_json(self) -> bool:
        """Whether an answer is written as JSON: lists and structs."""
        return self.kind in ("list", "struct")

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of a value; members of structs may be null where the data does not say."""
        if self.kind == "list":
            return {"type": "array", "items": self.members[0][1].json_schema()}
        if self.kind == "struct":
            properties = {name: {"anyOf": [kind.json_schema(), {"type": "null"}]} for name, kind in self.members}
            names = [name for name, _ in self.members]
            return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
        if self.kind == "enum":
            return {"enum": list(self.labels)}
        if self.kind in ("text", "boolean", "integer", "number"):
            return {"type": {"text": "string"}.get(self.kind, self.kind)}
        if self.kind == "decimal":
            return {"type": "number"}
        return {"type": "string", "pattern": f"^{_PATTERNS[self.kind]}$"}

    def value(self, text: str) -> Any:
        """The value that the text of an answer stands for, as Arrow takes it.

        Raises:
            ValueError: it is none of this type; the message says what came.
        """
        if self.kind == "text":
            return text
        try:
            found = json.loads(text) if self.is_json else text.strip()
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"expected JSON of {self.sql}, the model answered {shortened(text)} ({problem})") from None
        try:
            return self._checked(found)
        except (ValueError, TypeError, InvalidOperation, OverflowError, pa.ArrowInvalid) as problem:
            raise ValueError(f"expected {self.sql}, the model answered {shortened(text)}: {problem}") from None

    def _checked(self, value: Any) -> Any:
        """A parsed JSON value, or bare text, as a value of this type."""
        if value is None:
            return None
        if self.kind == "struct":
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            unknown = sorted(set(value) - {name for name, _ in self.members})
            if unknown:
                raise ValueError(f"there is no member {unknown[0]!r}")
            return {name: kind._checked(value.get(name)) for name, kind in self.members}
        if self.kind == "list":
            if not isinstance(value, list):
                raise ValueError("no JSON array")
            return [self.members[0][1]._checked(item) for item in value]
        if isinstance(value, (dict, list)):
            raise ValueError(f"no {self.sql}")
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        if self.kind == "boolean":
            word = str(value).strip(".").lower()
            if word not in YES | NO:
                raise ValueError("neither yes nor no")
            return word in YES
        if self.kind in ("text", "enum"):
            text = value if isinstance(value, str) else json.dumps(value)
            if self.kind == "enum" and text not in self.labels:
                raise ValueError(f"not one of {', '.join(self.labels)}")
            return text
        if isinstance(value, bool):
            raise ValueError("a truth value")
        if self.kind == "integer":
            whole = int(value) if isinstance(value, (int, str)) else _whole(value)
            return pa.scalar(whole, self.arrow).as_py()
        if self.kind == "number":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError("no finite number")
            return number
        if self.kind == "decimal":
            exact = Decimal(str(value)).quantize(Decimal(1).scaleb(-self.arrow.scale))
            return pa.scalar(exact, self.arrow).as_py()
        return {
            "date": datetime.date.fromisoformat,
            "time": datetime.time.fromisoformat,
            "timestamp": datetime.datetime.fromisoformat,
        }[self.kind](str(value))

    def text_of(self, value: Any) -> str | None:
        """A value as text that SQL can cast to the type: JSON for lists and structs."""
        if value is None:
            return None
        if self.is_json:
            return json.dumps(value, ensure_ascii=False, default=str)
        return str(value).lower() if self.kind == "boolean" else str(value)


YES = frozenset({"yes", "true", "1", "y", "t"})
NO = frozenset({"no", "false", "0", "n", "f"})


def parse_type(sql: str) -> AnswerType:
    """The type that DuckDB's SQL, or Spark's, calls so.

    Raises:
        CallError: it is no type, or one that answers cannot have.

    >>> parse_type("struct(name text, born date)").sql
    'STRUCT(name VARCHAR, born DATE)'
    >>> parse_type("array<struct<name: string>>").sql
    'STRUCT(name VARCHAR)[]'
    """
    if "<" in sql:
        sql = re.sub(r"(\w|`)\s*:", r"\1 ", sql).replace("`", '"')
    try:
        cast = sqlglot.parse_one(f"CAST(NULL AS {sql})", dialect="duckdb")
    except SqlglotError:
        cast = None
    parsed = cast.args.get("to") if isinstance(cast, exp.Cast) else None
    if not isinstance(parsed, exp.DataType):
        raise CallError(f"{sql!r} is no SQL type; write one such as 'INTEGER' or 'STRUCT(name VARCHAR, born DATE)'")
    return _from_sqlglot(parsed)


def schema_type(schema: Any) -> AnswerType:
    """The SQL type of the values of a JSON schema, as far as SQL has one.

    Raises:
        CallError: the schema is no object, or says what no SQL type can.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as problem:
            raise CallError(f"the schema is no JSON: {problem}") from None
    if not isinstance(schema, dict):
        raise CallError(f"a JSON schema is an object, not {shortened(str(schema))}")
    return _from_schema(schema, "the schema")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def shortened(text: str) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _from_sqlglot(parsed: exp.DataType) -> AnswerType:
    name = parsed.this.value if isinstance(parsed.this, exp.DataType.Type) else str(parsed.this)
    inner = parsed.expressions
    text = parsed.sql(dialect="duckdb").upper().split("(")[0]
    simple = _SAME.get(text, text)
    if simple in _SIMPLE and not (inner and simple != "VARCHAR"):
        name = simple
        kind, arrow = _SIMPLE[name]
        return AnswerType(name, kind, arrow)
    if name == "DECIMAL":
        precision, scale = ([int(part.name) for part in inner] + [3])[:2] if inner else (18, 3)
        if len(inner) == 1:
            scale = 0
        if not 1 <= precision <= 38 or not 0 <= scale <= precision:
            raise CallError(f"{parsed.sql(dialect='duckdb')}: a DECIMAL has 1 to 38 digits")
        return AnswerType(f"DECIMAL({precision}, {scale})", "decimal", pa.decimal128(precision, scale))
    if name in ("ARRAY", "LIST") and len(inner) == 1 and isinstance(inner[0], exp.DataType):
        return _list_of(_from_sqlglot(inner[0]))
    if name == "STRUCT" and inner and all(isinstance(item, exp.ColumnDef) and item.kind for item in inner):
        return _struct_of([(item.name, _from_sqlglot(item.kind)) for item in inner])
    if name.startswith("ENUM") and inner:
        return _enum_of([item.name for item in inner])
    raise CallError(
        f"answers cannot have the type {parsed.sql(dialect='duckdb')}; they can be {', '.join(sorted(_SIMPLE))}, "
        "DECIMAL, ENUM('a', 'b'), lists (INTEGER[]) and STRUCT(name type, ...)"
    )


def _from_schema(schema: dict[str, Any], where: str) -> AnswerType:
    labels = schema.get("enum")
    if labels is not None:
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise CallError(f"{where}: 'enum' must be a list of texts")
        return _enum_of(labels)
    kind = schema.get("type")
    alternatives = schema.get("anyOf")
    if kind is None and isinstance(alternatives, list):
        others = [part for part in alternatives if isinstance(part, dict) and part.get("type") != "null"]
        if len(others) == 1:
            return _from_schema(others[0], where)
    if isinstance(kind, list):
        others = [name for name in kind if name != "null"]
        kind = others[0] if len(others) == 1 else None
    if kind == "object" and isinstance(schema.get("properties"), dict) and schema["properties"]:
        members = []
        for name, part in schema["properties"].items():
            if not isinstance(part, dict):
                raise CallError(f"{where}: property {name!r} must be an object")
            members.append((name, _from_schema(part, f"{where}, property {name!r}")))
        return _struct_of(members)
    if kind == "array" and isinstance(schema.get("items"), dict):
        return _list_of(_from_schema(schema["items"], f"{where}, items"))
    simple = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}.get(str(kind))
    if simple is None:
        raise CallError(
            f"{where}: no SQL type fits {shortened(json.dumps(schema))}; use object with properties, array with items, "
            "string, integer, number, boolean or enum"
        )
    if simple == "VARCHAR" and schema.get("format") == "date":
        simple = "DATE"
    found, arrow = _SIMPLE[simple]
    return AnswerType(simple, found, arrow)


def _list_of(member: AnswerType) -> AnswerType:
    return AnswerType(f"{member.sql}[]", "list", pa.list_(member.arrow), (("item", member),))


def _struct_of(members: list[tuple[str, AnswerType]]) -> AnswerType:
    names = [name.lower() for name, _ in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CallError(f"a struct has two members called {repeated[0]!r}")
    sql = ", ".join(f"{_identifier(name)} {kind.sql}" for name, kind in members)
    return AnswerType(f"STRUCT({sql})", "struct", pa.struct([(n, k.arrow) for n, k in members]), tuple(members))


def _enum_of(labels: list[str]) -> AnswerType:
    if len(set(labels)) < len(labels):
        raise CallError(f"an enum has a label twice: {', '.join(labels)}")
    return AnswerType("VARCHAR", "enum", pa.string(), labels=tuple(labels))


def _identifier(name: str) -> str:
    return name if name.isidentifier() and name.islower() else str(sqlglot.exp.to_identifier(name, quoted=True))


def _whole(value: Any) -> int:
    if float(value) != int(value):
        raise ValueError("no whole number")
    return int(value)
