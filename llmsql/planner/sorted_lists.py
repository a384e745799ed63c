"""Lists in an order, for SQL engines whose aggregates have none: the rows' keys are collected with them.

transform(array_sort(collect_list(struct(year AS k0, title AS item)), (l, r) -> …), x -> x.item)
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

ITEM = "item"


def with_keys(item: exp.Expression, order: Sequence[exp.Expression]) -> exp.Struct:
    """What is collected for a row: the keys of its order, and the item, which may be NULL."""
    named = [(f"k{number}", key.this) for number, key in enumerate(order)]
    return exp.Struct(
        expressions=[
            exp.PropertyEQ(this=exp.to_identifier(name), expression=value.copy())
            for name, value in [*named, (ITEM, item)]
        ]
    )


def sorted_items(rows: exp.Expression, order: Sequence[exp.Expression]) -> exp.Expression:
    """The items of a list of `with_keys`, in their order."""
    compared: exp.Expression = exp.Literal.number(0)
    for number, key in reversed(list(enumerate(order))):
        compared = _compared(f"k{number}", key, compared)
    in_order = exp.Anonymous(this="array_sort", expressions=[rows, _lambda(compared, "l", "r")])
    return exp.Anonymous(this="transform", expressions=[in_order, _lambda(_of("x", ITEM), "x")])


def _compared(name: str, key: exp.Expression, equal: exp.Expression) -> exp.Case:
    """-1 where the left row comes first by this key, 1 where the right one does; `equal` where neither."""
    left, right = _of("l", name), _of("r", name)
    before, after = (1, -1) if key.args.get("desc") else (-1, 1)
    null, known = (-1, 1) if key.args.get("nulls_first") else (1, -1)
    branches = (
        (exp.NullSafeEQ(this=left.copy(), expression=right.copy()), equal),
        (exp.Is(this=left.copy(), expression=exp.null()), _number(null)),
        (exp.Is(this=right.copy(), expression=exp.null()), _number(known)),
        (exp.LT(this=left, expression=right), _number(before)),
    )
    return exp.Case(ifs=[exp.If(this=when, true=then) for when, then in branches], default=_number(after))


def _number(value: int) -> exp.Expression:
    return exp.Literal.number(value)


def _of(row: str, name: str) -> exp.Dot:
    return exp.Dot(this=exp.to_identifier(row), expression=exp.to_identifier(name))


def _lambda(body: exp.Expression, *parameters: str) -> exp.Lambda:
    return exp.Lambda(this=body, expressions=[exp.to_identifier(name) for name in parameters])
