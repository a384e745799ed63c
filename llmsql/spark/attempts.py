"""Expressions that are NULL where they would raise, in the functions that Spark has for it.

Spark has no TRY around an expression, as DuckDB has. Each part of it that may raise is written in its own form that
does not: try_cast, try_divide, try_element_at, ...
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.hazards import COMPARING, SAFE, IsText, compares_alike, holds_text

ARITHMETIC: dict[type[exp.Expression], str] = {
    exp.Add: "try_add",
    exp.Sub: "try_subtract",
    exp.Mul: "try_multiply",
    exp.Div: "try_divide",
}
REMAINDERS = (exp.Mod, exp.IntDiv)  # raise for a divisor of zero alone
DATE_PARTS = (exp.Year, exp.Month, exp.Day, exp.Extract)
# A text would be cast first.
CASTING: tuple[type[exp.Expression], ...] = (*ARITHMETIC, *REMAINDERS, *DATE_PARTS, exp.Neg)
# Functions that raise for no value in Spark, beside those of all engines.
TOTAL: tuple[type[exp.Expression], ...] = (
    *(exp.Alias, exp.Var, exp.Interval, exp.Substring, exp.Left, exp.Right, exp.Replace, exp.Contains, exp.EndsWith),
    *(exp.ConcatWs, exp.ArraySize, exp.ArrayContains, exp.JSONExtractScalar, exp.PropertyEQ, exp.Kwarg),
)


def attempted(expression: exp.Expression, is_text: IsText, *, wholly: bool = True) -> exp.Expression | None:
    """A copy of the expression, NULL where evaluating it raises; None where Spark has no form for a part of it.

    Args:
        expression: of one row; no LLM call in it.
        is_text: whether a column or a parameter holds texts.
        wholly: False leaves such a part as it is.

    >>> import sqlglot
    >>> attempted(sqlglot.parse_one("CAST(a AS INT) / b", dialect="spark"), lambda column: False).sql(dialect="spark")
    'TRY_DIVIDE(TRY_CAST(a AS INT), b)'
    """
    if wholly and not all(_is_known(node, is_text) for node in expression.walk()):
        return None
    return _attempt(expression.copy())


def _is_known(node: exp.Expression, is_text: IsText) -> bool:
    if isinstance(node, COMPARING):
        return compares_alike(node, is_text)
    if isinstance(node, CASTING):
        return all(_is_no_text(operand.unnest(), is_text) for operand in node.iter_expressions())
    if isinstance(node, exp.Bracket):  # x[0] may be of an array, and out of its bounds
        return isinstance(node.expressions[0], exp.Literal) and bool(node.expressions[0].is_string)
    return isinstance(node, (*SAFE, *TOTAL, exp.Cast))


def _is_no_text(operand: exp.Expression, is_text: IsText) -> bool:
    return isinstance(operand, (exp.Interval, exp.ArraySize, exp.Var)) or holds_text(operand, is_text) is False


def _attempt(node: exp.Expression) -> exp.Expression:
    for child in list(node.iter_expressions()):
        written = _attempt(child)
        if written is not child:
            child.replace(written)
    name = ARITHMETIC.get(type(node))
    if name is not None:
        return exp.Anonymous(this=name, expressions=[node.this, node.expression])
    if isinstance(node, REMAINDERS):
        divisor = exp.Nullif(this=node.expression, expression=exp.Literal.number(0))
        return type(node)(this=node.this, expression=divisor)
    if isinstance(node, exp.Neg) and not isinstance(node.this, exp.Literal):
        return exp.Anonymous(this="try_subtract", expressions=[exp.Literal.number(0), node.this])
    if isinstance(node, exp.Bracket) and node.args.get("offset"):
        node.set("safe", True)  # try_element_at; it raises for an index of zero alone
    if isinstance(node, exp.Cast):
        return exp.TryCast(this=node.this, to=node.to, safe=True)
    return node
