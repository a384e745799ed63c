"""Expressions that may stop a statement with an error: casts of texts, overflows, divisions.

The planner evaluates predicates earlier, and for other rows, than the SQL engine would have. Where such a predicate may
raise it is only attempted (TRY in DuckDB), and a row whose predicate raises counts as one for which it holds: the model
is asked more, and the error comes, if at all, from where the user wrote it.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

IsText = Callable[[exp.Expression], "bool | None"]  # of a column or a parameter; None when that is not known
# An expression, NULL where evaluating it raises; None where the SQL engine cannot say so. See `Catalog.attempt`.
Attempt = Callable[[exp.Expression, IsText], "exp.Expression | None"]
# Nodes that raise for no value, whatever is below them.
SAFE: tuple[type[exp.Expression], ...] = (
    exp.Column,
    exp.Identifier,
    exp.Literal,
    exp.Boolean,
    exp.Null,
    exp.Placeholder,
    exp.Paren,
    exp.And,
    exp.Or,
    exp.Not,
    exp.Is,
    exp.Coalesce,
    exp.Nullif,
    exp.Case,
    exp.If,
    exp.Like,
    exp.ILike,
    exp.StartsWith,
    exp.Length,
    exp.Lower,
    exp.Upper,
    exp.Trim,
    exp.DPipe,
    exp.Concat,
    exp.TryCast,
    exp.DataType,
    exp.Try,
    exp.Struct,
    exp.PropertyEQ,
    exp.Array,
    exp.Dot,
)
# Nodes that compare, and raise only where one side is a text that must become something else first.
COMPARING: tuple[type[exp.Expression], ...] = (
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
    exp.Between,
    exp.In,
)

# Nodes whose value is never a text, nodes whose value always is, and types of values that are none.
NUMERIC: tuple[type[exp.Expression], ...] = (
    *(exp.Length, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg),
    *(exp.Year, exp.Month, exp.Day, exp.Extract, exp.Boolean, exp.Predicate, exp.Connector, exp.Not),
)
TEXTUAL: tuple[type[exp.Expression], ...] = (exp.Lower, exp.Upper, exp.Trim, exp.DPipe, exp.Concat, exp.Substring)
NUMBERS = (*exp.DataType.NUMERIC_TYPES, *exp.DataType.TEMPORAL_TYPES, exp.DataType.Type.BOOLEAN)


def may_raise(expression: exp.Expression, is_text: IsText | None = None) -> bool:
    """Whether evaluating the expression may stop the statement with an error; True when that is not known.

    Args:
        expression: of one row; no LLM call in it.
        is_text: whether a column or a parameter holds texts.
    """
    for node in expression.walk():
        if isinstance(node, COMPARING):
            if not compares_alike(node, is_text):
                return True
        elif not isinstance(node, SAFE) and not (isinstance(node, exp.Cast) and isinstance(node.this, exp.Literal)):
            return True
    return False


def holds_or_raises(condition: exp.Expression, is_text: IsText, attempt: Attempt) -> exp.Expression:
    """A condition that is never NULL, made true where evaluating it raises; true where that cannot be said."""
    if not may_raise(condition, is_text):
        return condition
    attempted = attempt(condition, is_text)
    return exp.true() if attempted is None else exp.NullSafeNEQ(this=attempted, expression=exp.false())


def is_true(condition: exp.Expression) -> exp.Expression:
    """The condition, false where it is NULL."""
    return exp.Is(this=exp.paren(condition), expression=exp.true())


def compares_alike(node: exp.Expression, is_text: IsText | None) -> bool:
    """Whether the sides need no cast that may fail: no text beside a number, a date or what is not known."""
    if isinstance(node, exp.In) and node.args.get("query") is not None:
        return False
    sides = [side.unnest() for side in node.iter_expressions()]
    if all(_is_constant_text(side, is_text) for side in sides[1:]):
        return True  # the literal becomes what the column is, once, before any row is read
    if any(isinstance(side, exp.Boolean) for side in sides):
        return True
    if is_text is None:
        return False
    kinds = {holds_text(side, is_text) for side in sides}
    return len(kinds) == 1 and None not in kinds


def _is_constant_text(side: exp.Expression, is_text: IsText | None) -> bool:
    if isinstance(side, exp.Placeholder):
        return is_text is not None and bool(is_text(side))
    return isinstance(side, exp.Literal) and bool(side.is_string)


def holds_text(side: exp.Expression, is_text: IsText) -> bool | None:
    """Whether the value of an expression is a text; None when that is not known."""
    side = side.unnest()
    if isinstance(side, (exp.Column, exp.Placeholder)):
        return is_text(side)
    if isinstance(side, exp.Literal):
        return bool(side.is_string)
    if isinstance(side, exp.Cast):
        is_number = side.to.is_type(*NUMBERS)
        return not is_number if is_number or side.to.is_type(*exp.DataType.TEXT_TYPES) else None
    if isinstance(side, (exp.Coalesce, exp.Nullif, exp.Case, exp.If)):
        kinds = {holds_text(value, is_text) for value in _values(side)}
        return kinds.pop() if len(kinds) == 1 else None
    if isinstance(side, NUMERIC):
        return False
    if isinstance(side, TEXTUAL):
        return True
    return None


def _values(node: exp.Expression) -> list[exp.Expression]:
    """The expressions one of which is the value of COALESCE, NULLIF, CASE or IF."""
    if isinstance(node, exp.Case):
        found = [*[branch.args["true"] for branch in node.args["ifs"]], node.args.get("default")]
    elif isinstance(node, exp.If):
        found = [node.args["true"], node.args.get("false")]
    else:
        found = [node.this, *node.expressions] if isinstance(node, exp.Coalesce) else [node.this]
    return [value for value in found if value is not None and not isinstance(value, exp.Null)]
