"""Expressions that are NULL where they would raise, in the functions that Spark has for it.

Spark has no TRY around an expression, as DuckDB has. Each part of it that may raise is written in its own form that
does not: try_cast, try_divide, try_element_at, ...
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.hazards import COMPARING, SAFE, IsText, compares_alike

ARITHMETIC: dict[type[exp.Expression], str] = {
    exp.Add: "try_add",
    exp.Sub: "try_subtract",
    exp.Mul: "try_multiply",
    exp.Div: "try_divide",
}
REMAINDERS = (exp.Mod, exp.IntDiv)  # raise for a divisor of zero alone
# Functions that raise for no value in Spark, beside those of all engines.
TOTAL: tuple[type[exp.Expression], ...] = (
    *(exp.Alias, exp.Var, exp.Interval, exp.Substring, exp.Left, exp.Right, exp.Replace, exp.Contains, exp.EndsWith),
    *(exp.Year, exp.Month, exp.Day, exp.Hour, exp.Minute, exp.Second, exp.Greatest, exp.Least, exp.ConcatWs),
    *(exp.ArraySize, exp.ArrayContains, exp.JSONExtractScalar, exp.PropertyEQ, exp.Kwarg),
)


def attempted(expression: exp.Expression, is_text: IsText) -> exp.Expression | None:
    """A copy of the expression, NULL where evaluating it raises; None where Spark has no form for a part of it.

    >>> import sqlglot
    >>> attempted(sqlglot.parse_one("CAST(a AS INT) / b", dialect="spark"), lambda column: None).sql(dialect="spark")
    'TRY_DIVIDE(TRY_CAST(a AS INT), b)'
    """
    if not all(_is_known(node, is_text) for node in expression.walk()):
        return None
    return _attempt(expression.copy())


def _is_known(node: exp.Expression, is_text: IsText) -> bool:
    if isinstance(node, COMPARING):
        return compares_alike(node, is_text)
    return isinstance(node, (*SAFE, *TOTAL, *ARITHMETIC, *REMAINDERS, exp.Cast, exp.Neg)) or _is_item(node)


def _is_item(node: exp.Expression) -> bool:
    """Whether the node is an item by `element_at`, or by a text, which a map has or has not; x[0] may be of either."""
    if not isinstance(node, exp.Bracket):
        return False
    key = node.expressions[0]
    return bool(node.args.get("offset")) or (isinstance(key, exp.Literal) and bool(key.is_string))


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
        node.set("safe", True)  # try_element_at
    if isinstance(node, exp.Cast):
        return exp.TryCast(this=node.this, to=node.to, safe=True)
    return node
