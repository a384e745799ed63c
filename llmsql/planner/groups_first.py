"""Calls on groups become calls on the rows of a subquery that groups.

    SELECT category, llm('Describe', max(price)) FROM products GROUP BY category HAVING count(*) > 3 LIMIT 5
    -> SELECT c0 AS category, llm('Describe', c1 AS "max(price)")
       FROM (SELECT category AS c0, max(price) AS c1 FROM products GROUP BY category HAVING count(*) > 3) LIMIT 5

So a call sees only the groups that HAVING leaves, and after them LIMIT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import clause_of, item_place
from llmsql.planner.grouping import SETS, WRAPPERS, Grouping, group_keys, is_aggregate
from llmsql.planner.halves import BELOW, Halves, Uncuttable, clause_conjuncts, leading
from llmsql.planner.naming import name_calls
from llmsql.planner.scope import Scope


def group_first(scope: Scope) -> bool:
    """Cut a SELECT with calls on its groups in two; False, and the SELECT as it was, where there is nothing to cut.

    Raises:
        CallError: a call is written wrongly.
    """
    select = scope.select
    if not Grouping(select, scope.catalog).is_grouped:
        return False
    name_calls(scope)
    grouping = Grouping(select, scope.catalog)
    above = [node for node in scope.calls() if clause_of(node, select) not in BELOW]
    if not any(grouping.is_after_grouping(node) for node in above):
        return False
    try:
        _cut(scope)
    except Uncuttable:
        return False
    return True


def _cut(scope: Scope) -> None:
    select, catalog = scope.select, scope.catalog
    keys: set[str] = set()
    halves = Halves(scope, "groups", lambda node: is_aggregate_part(node) or halves.text(node) in keys)

    def is_aggregate_part(node: exp.Expression) -> bool:
        while isinstance(node, WRAPPERS):
            node = node.this
        return is_aggregate(node, catalog)

    group = _resolved(halves, select.args.get("group"))
    keys |= {halves.text(key) for key in group_keys(group)}
    having = [halves.expand_aliases(condition) for condition in clause_conjuncts(select, "having")]
    plain = leading(having, lambda condition: not calls_in(condition))
    where = [halves.above(condition) for condition in having[plain:]]
    if select.args.get("group") is not None and select.args["group"].args.get("all"):
        for condition in having[:plain]:
            halves.above(condition)  # GROUP BY ALL groups by other columns of HAVING, too
    qualify = select.args.get("qualify")
    windows = [halves.above(window) for window in select.args.get("windows") or []]
    upper: dict[str, Any] = {
        "where": exp.Where(this=exp.and_(*where, copy=False)) if where else None,
        "qualify": exp.Qualify(this=halves.above(qualify.this)) if qualify is not None else None,
        "windows": windows or None,
        "group": None,
        "having": None,
    }
    lower = exp.Select(where=select.args.get("where"))
    if group.expressions or group.find(*SETS) is not None:
        lower.set("group", group)
    if plain:
        lower.set("having", exp.Having(this=exp.and_(*having[:plain])))
    halves.cut(lower, upper)


def _resolved(halves: Halves, group: exp.Group | None) -> exp.Group:
    """GROUP BY with the expression for each position and alias, and for ALL."""
    if group is None:
        return exp.Group()
    items = halves.select.expressions
    if group.args.get("all"):
        return exp.Group(expressions=[key.copy() for key in _keys_of_all(halves)])

    def resolve(node: exp.Expression) -> exp.Expression:
        if isinstance(node, SETS):
            node.set("expressions", [resolve(part) for part in node.expressions])
            if isinstance(node, exp.Paren):
                node.set("this", resolve(node.this))
            return node
        place = item_place(node)
        if place is not None:
            return items[place].unalias().copy()
        return halves.aliases[node.name.lower()].this.copy() if halves.is_alias(node) else node

    resolved = group.copy()
    for name, value in resolved.args.items():
        if isinstance(value, list):
            resolved.set(name, [resolve(part) for part in value])
    return resolved


def _keys_of_all(halves: Halves) -> Iterator[exp.Expression]:
    for item in halves.select.expressions:
        for _, value in halves.scope.item_columns(item) if item.is_star else [("", item.unalias())]:
            aggregates = any(is_aggregate(found, halves.scope.catalog) for found in value.find_all(exp.Func))
            if value.find(exp.Window, exp.Query) is not None and not aggregates:
                raise Uncuttable
            if not aggregates and value.find(exp.Column) is not None:
                yield value
