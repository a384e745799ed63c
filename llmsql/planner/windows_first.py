"""Calls above window functions become calls on the rows of a subquery that computes them.

    SELECT llm('Summarise', body) FROM reviews QUALIFY row_number() OVER (PARTITION BY author ORDER BY written) = 1
    -> SELECT llm('Summarise', c0 AS body)
       FROM (SELECT body AS c0 FROM reviews QUALIFY row_number() OVER (PARTITION BY author ORDER BY written) = 1)

So a call sees only the rows that QUALIFY leaves, and a call's arguments may need a window function.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import clause_of
from llmsql.planner.grouping import Grouping
from llmsql.planner.halves import BELOW, Halves, Uncuttable, clause_conjuncts, leading
from llmsql.planner.naming import name_calls
from llmsql.planner.scope import Scope


def windows_first(scope: Scope) -> bool:
    """Cut a SELECT with calls above window functions in two; False where there is nothing to cut.

    Raises:
        CallError: a call is written wrongly.
    """
    select = scope.select
    windows = [window for window in select.find_all(exp.Window) if window.find_ancestor(exp.Select) is select]
    if not windows or Grouping(select, scope.catalog).is_grouped:
        return False
    name_calls(scope)
    above = [node for node in scope.calls() if clause_of(node, select) not in BELOW and not _in_window(node)]
    wins = any(select.args.get(clause) for clause in ("qualify", "limit", "offset"))
    if not any(wins or node.find(exp.Window) is not None for node in above):
        return False
    try:
        _cut(scope)
    except Uncuttable:
        return False
    return True


def _in_window(node: exp.Expression) -> bool:
    return isinstance(node.find_ancestor(exp.Window, exp.Select), exp.Window)


def _cut(scope: Scope) -> None:
    select = scope.select

    def is_below(node: exp.Expression) -> bool:
        return isinstance(node, exp.Window) or (isinstance(node, exp.Column) and not halves.is_alias(node))

    halves = Halves(scope, "windows", is_below)
    qualify = [halves.expand_aliases(condition) for condition in clause_conjuncts(select, "qualify")]
    plain = leading(qualify, lambda condition: not _asks(condition) and condition.find(exp.Window) is not None)
    where = [halves.above(condition) for condition in qualify[plain:]]
    lower = exp.Select(where=select.args.get("where"))
    if plain:
        lower.set("qualify", exp.Qualify(this=exp.and_(*qualify[:plain])))
    upper: dict[str, Any] = {
        "where": exp.Where(this=exp.and_(*where, copy=False)) if where else None,
        "qualify": None,
        "windows": None,
    }
    named = select.args.get("windows")
    halves.cut(lower, upper)
    lower.set("windows", named)


def _asks(condition: exp.Expression) -> bool:
    """Whether a predicate has a call outside of its window functions."""
    root = exp.paren(condition.copy())
    return any(node.find_ancestor(exp.Window) is None for node in calls_in(root))
