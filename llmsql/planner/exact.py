"""Comparing arguments by their bytes, also where the user's own comparisons do not tell 'a' from 'A'.

A column with a collation (`COLLATE NOCASE`) takes it along into every comparison, so a join on it finds the answer to
another text. GROUP BY keeps such texts apart; a BLOB has no collation.
"""

from __future__ import annotations

from sqlglot import exp

TEXT_TYPE = "VARCHAR"


def same_value(value: exp.Expression, key: exp.Expression, *, by_bytes: bool) -> exp.Expression:
    """The condition that an argument is the one that an answer is for, NULL included.

    Args:
        value, key: of one type.
        by_bytes: whether a comparison of texts may have a collation.
    """
    same: exp.Expression = exp.NullSafeEQ(this=value, expression=key)
    if by_bytes:
        same = exp.and_(same, exp.NullSafeEQ(this=_bytes(value), expression=_bytes(key)), copy=False)
    return same


def _bytes(value: exp.Expression) -> exp.Expression:
    """The bytes of what holds texts; NULL for all else, which has equal values in several forms (0.0 and -0.0)."""
    kind = exp.Anonymous(this="typeof", expressions=[value.copy()])
    holds_text = exp.Anonymous(this="contains", expressions=[kind, exp.Literal.string(TEXT_TYPE)])
    encoded = exp.Anonymous(this="encode", expressions=[exp.cast(value.copy(), TEXT_TYPE)])
    return exp.Case(ifs=[exp.If(this=holds_text, true=encoded)])
