"""What the SQL around an expression says about its value: a type, one of some texts, any type, or text."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlglot import exp

from llmsql.errors import CallError
from llmsql.functions import cached_type
from llmsql.planner.calls import call_text, is_llm_call
from llmsql.planner.planning import call_type

TypeOf = Callable[[exp.Expression], "str | None"]  # the SQL type of an expression of the same SELECT
EQUATING = (exp.EQ, exp.NEQ, exp.NullSafeEQ, exp.NullSafeNEQ)
COMPARING = (*EQUATING, exp.GT, exp.GTE, exp.LT, exp.LTE)
SUMMING = (exp.Sum, exp.Avg, exp.Median)
ANY_TYPE = (
    exp.Select,
    exp.Alias,
    exp.Ordered,
    exp.Group,
    exp.Distinct,
    exp.Count,
    exp.Min,
    exp.Max,
    exp.Paren,
    exp.Tuple,
)
INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
SIMPLE = ("BOOLEAN", "DATE", "TIME", "TIMESTAMP")


@dataclass(frozen=True)
class Context:
    """What one place says.

    `sql_type`: the value is of that type. `labels`: it is compared with these texts. Neither: `any_type` says whether a
    value of any type can stand here, or only a text. `declared`: a cast or a column that the value goes to names the
    type, and it is not just compared. `source`: the SQL that says so.
    """

    sql_type: str | None = None
    labels: tuple[str, ...] = ()
    any_type: bool = False
    neutral: bool = False
    declared: bool = False
    source: str = ""


def context(node: exp.Expression, type_of: TypeOf, constant: Callable[[exp.Expression], Any]) -> Context:
    """What the place of a call, or of a column that shows its value, says about the value.

    Args:
        node: the call or column in the tree.
        type_of: the SQL type of another expression beside it; None where it is not known.
        constant: the value of a parameter.
    """
    while isinstance(node.parent, exp.Paren):
        node = node.parent
    outer, key = node.parent, node.arg_key
    if outer is None:
        return Context()
    found = _place(node, outer, key, type_of, constant)
    text = call_text(outer, "duckdb") if found.sql_type or found.labels else ""
    if isinstance(outer, (exp.Where, exp.Having, exp.Qualify, exp.Join, exp.And, exp.Or, exp.If, exp.Select)):
        text = f"its place in {outer.key.upper()}"
    return replace(found, source=found.source or (text if len(text) <= 80 else text[:79] + "…"))


def declared(sql: str, source: str = "") -> Context:
    """The context of a value that becomes one of the type `sql`, as far as answers can have it."""
    try:
        found = cached_type(sql)
    except CallError:
        return Context()
    if found.kind == "text":
        return Context(any_type=True)
    return Context(sql_type=sql, declared=True, source=source)


def _place(
    node: exp.Expression, outer: exp.Expression, key: str | None, type_of: TypeOf, constant: Callable[..., Any]
) -> Context:
    if isinstance(outer, exp.Cast):
        return declared(outer.to.sql(dialect="duckdb"))
    if isinstance(outer, exp.Is):
        is_boolean = isinstance(outer.expression, exp.Boolean)
        return Context(sql_type="BOOLEAN") if is_boolean else Context(any_type=True, neutral=True)
    if isinstance(outer, COMPARING):
        return _compared([outer.right if node is outer.left else outer.left], outer, type_of, constant)
    if isinstance(outer, exp.Between):
        others = [part for part in (outer.this, outer.args["low"], outer.args["high"]) if part is not node]
        return _compared(others, outer, type_of, constant)
    if isinstance(outer, exp.In) and key == "this" and outer.expressions and not outer.args.get("query"):
        return _compared(outer.expressions, outer, type_of, constant)
    if isinstance(outer, exp.Case) and key == "this":
        return _compared([branch.this for branch in outer.args["ifs"]], outer, type_of, constant)
    if _is_condition(outer, key):
        return Context(sql_type="BOOLEAN")
    if isinstance(outer, SUMMING) and key == "this":
        return Context(sql_type="DOUBLE")
    return Context(any_type=isinstance(outer, ANY_TYPE), neutral=isinstance(outer, exp.Count))


def _is_condition(outer: exp.Expression, key: str | None) -> bool:
    if isinstance(outer, exp.If):
        case = outer.parent
        return key == "this" and not (isinstance(case, exp.Case) and case.this is not None)
    if isinstance(outer, exp.Join):
        return key == "on"
    return isinstance(outer, (exp.Where, exp.Having, exp.Qualify, exp.And, exp.Or, exp.Not, exp.Xor))


def _compared(
    others: list[exp.Expression], outer: exp.Expression, type_of: TypeOf, constant: Callable[..., Any]
) -> Context:
    """The context of a value that is compared with others."""
    found: list[str | None] = []
    labels: list[str] = []
    for other in (other.unnest() for other in others):
        value = _literal(other, constant)
        if isinstance(value, str):
            labels.append(value)
        else:
            found.append(_literal_type(value) if value is not None else _expression_type(other, type_of))
    if labels and not found and isinstance(outer, (*EQUATING, exp.In, exp.Case)) and all(labels):
        return Context(labels=tuple(dict.fromkeys(labels)))
    kinds = set(found)
    if kinds == {"BIGINT", "DOUBLE"}:
        kinds = {"DOUBLE"}
    kind = kinds.pop() if len(kinds) == 1 and not labels else None
    return Context(sql_type=kind)


def _literal(node: exp.Expression, constant: Callable[..., Any]) -> Any:
    """The value of a literal or a parameter; None for anything else."""
    if isinstance(node, exp.Neg):
        value = _literal(node.this, constant)
        return value if isinstance(value, (int, float)) else None
    if isinstance(node, exp.Literal):
        if node.is_string:
            return node.this
        return int(node.this) if node.this.isdecimal() else 0.5
    if isinstance(node, exp.Boolean):
        return node.this
    return constant(node) if isinstance(node, exp.Placeholder) else None


def _literal_type(value: Any) -> str | None:
    kinds = (
        (bool, "BOOLEAN"),
        (int, "BIGINT"),
        ((float, Decimal), "DOUBLE"),
        (datetime.datetime, "TIMESTAMP"),
        (datetime.date, "DATE"),
        (datetime.time, "TIME"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), None)


def _expression_type(node: exp.Expression, type_of: TypeOf) -> str | None:
    """The type in which answers are compared with an expression: whole numbers and others have one type each."""
    if is_llm_call(node):
        sql: str | None = call_type(node)
    elif isinstance(node, exp.Cast):
        sql = str(node.to.sql(dialect="duckdb")).upper()
    else:
        sql = type_of(node)
    if sql is None:
        return None
    if sql in ("INT", *INTEGERS):
        return "BIGINT"
    if sql in ("FLOAT", "REAL", "DOUBLE") or sql.startswith("DECIMAL"):
        return "DOUBLE"
    return sql if sql in SIMPLE or sql.startswith("ENUM(") else None
