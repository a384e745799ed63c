"""What a query reads at most, while answers that it depends on are not known."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from llmsql.planner.clauses import conjuncts
from llmsql.planner.planning import IN_PLACE_PREFIX

Unknown = AbstractSet[tuple[str, str]]  # (relation, column), both in lower case


@dataclass(frozen=True)
class Loosened:
    """A query without the conditions that depend on unknown answers, so that it has all rows that it may have.

    `depends`: something in it is not known. `bounds`: it is no less than the real one; not so where the rows are
    counted, cut off or taken away from others. `unknown`: places in its result of columns that are not known.
    """

    sql: str
    depends: bool = False
    bounds: bool = True
    unknown: tuple[int, ...] = ()


def loosen(sql: str, unknown: Unknown, dialect: str = "duckdb") -> Loosened:
    """Drop each part of a WHERE, ON, HAVING or QUALIFY that needs a column in `unknown`, or a call left in place."""
    tree = sqlglot.parse_one(sql, dialect=dialect)
    names = _Names(tree, unknown)
    if not names.taints(tree):
        return Loosened(sql)
    bounds = True
    for select in list(tree.find_all(exp.Select)):
        inside = names.taints(select)
        for clause in ("where", "having", "qualify"):
            _drop(select, clause, names)
        for join in select.args.get("joins") or []:
            _drop_condition(join, names)
        if inside and select.parent is not None and _depends_on_number(select):
            bounds = False
    if tree.find(exp.Except, exp.Intersect) is not None:
        bounds = False
    items = tree.expressions if isinstance(tree, exp.Select) else []
    places = tuple(place for place, item in enumerate(items) if names.taints(item))
    return Loosened(tree.sql(dialect=dialect), True, bounds, places)


class _Names:
    """Which columns of a query are not known: those given, and those that its subqueries make of them."""

    def __init__(self, tree: exp.Expression, unknown: Unknown):
        self._unknown = unknown
        self._aliases: set[str] = set()
        before = -1
        while before != len(self._aliases):
            before = len(self._aliases)
            for select in tree.find_all(exp.Select):
                if select.parent is None:
                    continue
                for item in select.expressions:
                    if item.alias_or_name and self.taints(item):
                        self._aliases.add(item.alias_or_name.lower())

    def taints(self, node: exp.Expression) -> bool:
        """Whether a column that is not known stands in it, or a call."""
        if any(str(function.this).lower().startswith(IN_PLACE_PREFIX) for function in node.find_all(exp.Anonymous)):
            return True  # a call left in place
        for column in node.find_all(exp.Column):
            if (column.table.lower(), column.name.lower()) in self._unknown or column.name.lower() in self._aliases:
                return True
        return False


def _drop(select: exp.Select, clause: str, names: _Names) -> None:
    found = select.args.get(clause)
    if found is None or not names.taints(found):
        return
    kept = [part for part in conjuncts(found.this) if not names.taints(part)]
    if kept:
        found.set("this", exp.and_(*kept))
    else:
        select.set(clause, None)


def _drop_condition(join: exp.Join, names: _Names) -> None:
    """The same for ON; answers are joined by their arguments, and that stays."""
    on = join.args.get("on")
    if on is None or join.side or not names.taints(on):
        return
    kept = [part for part in conjuncts(on) if isinstance(part, exp.NullSafeEQ) or not names.taints(part)]
    join.set("on", exp.and_(*kept) if kept else exp.true())


def _depends_on_number(select: exp.Select) -> bool:
    """Whether more rows in a subquery may mean fewer, or other ones, outside."""
    if any(select.args.get(name) for name in ("limit", "offset", "having", "qualify")):
        return True
    return any(item.find(exp.AggFunc, exp.Window) is not None for item in select.expressions)
