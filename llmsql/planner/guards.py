"""The rows for which the value of a call can matter, read off the place where the call stands.

Beside a predicate that is false, an AND needs no answer; a branch of a CASE needs one only where it is chosen. So each
call has a guard: conditions over columns and over calls that are staged before it. Where the guard does not hold the
call is not asked, and its value is NULL.

Why the whole expression still comes out right with these NULLs: a condition of the guard fails only where the node that
it stands at (AND, OR, CASE, ...) has the same value whatever the call's branch is, by SQL's three-valued logic. The
siblings that decide this have their true values there: what they are guarded by themselves are the conditions of the
nodes above, which then have decided already; and calls are staged one after the other, so that no two of them each wait
for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlglot import exp

from llmsql.planner.clauses import conjuncts, disjuncts
from llmsql.planner.hazards import COMPARING, SAFE, is_true
from llmsql.planner.siblings import Siblings

Usable = Callable[[exp.Expression], "exp.Expression | None"]
# Nodes that are NULL where an operand is NULL; and nodes that compute a branch only where it is chosen.
STRICT = (
    *(exp.Paren, exp.Not, exp.Neg, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike),
    *(exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.DPipe, exp.Cast, exp.TryCast),
    *(exp.Lower, exp.Upper, exp.Length),
)
LAZY = (exp.Case, exp.If, exp.Coalesce)


def guard(node: exp.Expression, root: exp.Expression, siblings: Siblings) -> list[exp.Expression]:
    """The conditions, all never NULL, under which the value of `node` can matter; none when it always does.

    Args:
        node: a call in the tree.
        root: the SELECT, or whatever holds the predicates, in which the call stands.
        siblings: says which expressions conditions can be made of, and where guards end.
    """

    def usable(sibling: exp.Expression) -> exp.Expression | None:
        return siblings.usable(sibling, node)

    found: list[exp.Expression] = []
    masked = raising = False
    inner, outer = node, node.parent
    while outer is not None and outer is not root:
        if isinstance(outer, exp.Lambda):
            return []  # what stands in it sees elements, not rows
        if siblings.end_at(outer):
            return found
        # With its value missing, the branch that this node computes anyway could raise where it would not have.
        if not raising or isinstance(outer, LAZY):
            found += [condition for condition in _conditions(inner, outer, usable) if condition not in found]
        raising = raising or (masked and _may_raise(inner, outer))
        masked = masked or not isinstance(outer, STRICT)
        inner, outer = outer, outer.parent
    return found


def any_guard(guards: list[list[exp.Expression]]) -> exp.Expression | None:
    """The union of the guards of several calls; None when one of them always matters."""
    if not all(guards):
        return None
    found: list[exp.Expression] = []
    for conditions in guards:
        condition = exp.and_(*conditions)
        if condition not in found:
            found.append(condition)
    return exp.or_(*found)


def _conditions(inner: exp.Expression, outer: exp.Expression, usable: Usable) -> Iterator[exp.Expression]:
    """What must hold at one node on the way up for the branch `inner` to matter."""

    def parts(test: Callable[[exp.Expression], exp.Expression], siblings: list[exp.Expression]) -> list[exp.Expression]:
        return [test(written) for sibling in siblings if (written := usable(sibling)) is not None]

    if isinstance(outer, exp.And):
        yield from parts(_not_false, conjuncts(outer.right if inner is outer.left else outer.left))
    elif isinstance(outer, exp.Or):
        yield from parts(_not_true, disjuncts(outer.right if inner is outer.left else outer.left))
    elif isinstance(outer, exp.If):
        condition = _when(outer)
        if inner.arg_key == "true":
            yield from parts(is_true, [condition])
        elif inner.arg_key == "false":
            yield from parts(_not_true, [condition])
    elif isinstance(outer, exp.Case) and inner.arg_key in ("ifs", "default"):
        branches = outer.args["ifs"]
        before = branches if inner.arg_key == "default" else branches[: _index(inner, branches)]
        yield from parts(_not_true, [_when(branch) for branch in before])
    elif isinstance(outer, exp.Coalesce) and inner.arg_key == "expressions":
        yield from parts(_null, [outer.this, *outer.expressions[: _index(inner, outer.expressions)]])
    elif isinstance(outer, exp.Nullif) and inner.arg_key == "expression":
        yield from parts(_not_null, [outer.this])
    elif isinstance(outer, exp.In) and inner.arg_key == "expressions":
        yield from parts(_not_null, [outer.this])
        equal = [exp.EQ(this=outer.this.copy(), expression=item.copy()) for item in outer.expressions if item != inner]
        yield from parts(_not_true, list(equal))
    elif isinstance(outer, exp.Filter) and inner.arg_key == "this":
        yield from parts(is_true, [outer.expression.this])


def _when(branch: exp.Expression) -> exp.Expression:
    """The condition of a branch of CASE; `CASE x WHEN 1` compares."""
    case = branch.parent
    if isinstance(case, exp.Case) and case.this is not None:
        return exp.EQ(this=exp.paren(case.this.copy()), expression=exp.paren(branch.this.copy()))
    return branch.this


def _may_raise(inner: exp.Expression, outer: exp.Expression) -> bool:
    if isinstance(outer, COMPARING):
        others = [side.unnest() for side in outer.iter_expressions() if side is not inner]
        return not all(isinstance(side, exp.Literal) and side.is_string for side in others)
    return not isinstance(outer, (*SAFE, exp.Alias, exp.Where, exp.Having, exp.Ordered, exp.Order, exp.Group))


def _index(node: exp.Expression, among: list[exp.Expression]) -> int:
    return next(number for number, other in enumerate(among) if other is node)


def _not_true(condition: exp.Expression) -> exp.Expression:
    return exp.NullSafeNEQ(this=exp.paren(condition), expression=exp.true())


def _not_false(condition: exp.Expression) -> exp.Expression:
    return exp.NullSafeNEQ(this=exp.paren(condition), expression=exp.false())


def _null(value: exp.Expression) -> exp.Expression:
    return exp.Is(this=exp.paren(value), expression=exp.null())


def _not_null(value: exp.Expression) -> exp.Expression:
    return exp.Not(this=_null(value))
