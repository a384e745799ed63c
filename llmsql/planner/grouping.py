"""Where a call stands in a SELECT that groups: before the grouping, or after it."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import item_place

SETS = (exp.Rollup, exp.Cube, exp.GroupingSets, exp.Tuple, exp.Paren)  # of GROUP BY
WRAPPERS = (exp.Filter, exp.IgnoreNulls, exp.RespectNulls, exp.WithinGroup)  # of a function, its modifiers


class Grouping:
    """The grouping of one SELECT.

    A call before the grouping sees rows: it stands in an aggregate's argument, or is (part of) a group key. One after
    it sees groups; as its arguments are then group keys, its value is the same for all rows of a group.
    """

    def __init__(self, select: exp.Select, catalog: Catalog):
        self.select = select
        self.catalog = catalog
        group = select.args.get("group")
        self.all = bool(group is not None and group.args.get("all"))
        self.has_sets = group is not None and group.find(exp.GroupingSets, exp.Cube, exp.Rollup) is not None
        self.keys = list(group_keys(group)) if group is not None else []
        self.is_grouped = group is not None or any(
            self._aggregate_in(item)
            for item in [*select.expressions, *([select.args["having"]] if select.args.get("having") else [])]
        )

    def is_after_grouping(self, node: exp.Expression) -> bool:
        """Whether the call sees groups instead of rows."""
        if not self.is_grouped:
            return False
        inner, outer = node, node.parent
        while outer is not None and outer is not self.select:
            if isinstance(outer, exp.Filter) or self._is_aggregate(outer):
                return _is_windowed(outer)
            inner, outer = outer, outer.parent
        place = inner.arg_key
        if place in ("where", "group"):
            return False
        if place == "expressions" and self._is_key(inner):
            return False
        return not self._has_key(node)

    def _is_key(self, item: exp.Expression) -> bool:
        """Whether an item of the SELECT list is a group key as a whole: by position, name, text, or GROUP BY ALL."""
        if self.all:
            return not self._aggregate_in(item)
        expression = item.unalias()
        for key in self.keys:
            place = item_place(key)
            if place is not None:
                if place == self.select.expressions.index(item):
                    return True
            elif key == expression or (_is_bare(key) and key.name.lower() == item.alias.lower()):
                return True
        return False

    def _has_key(self, node: exp.Expression) -> bool:
        if self.all:
            return any(item.unalias() == node and self._is_key(item) for item in self.select.expressions)
        return any(key == node for key in self.keys)

    def _aggregate_in(self, item: exp.Expression) -> bool:
        for found in item.find_all(exp.Func):
            if self._is_aggregate(found) and not _is_windowed(found) and found.parent_select is self.select:
                return True
        return False

    def _is_aggregate(self, node: exp.Expression) -> bool:
        return is_aggregate(node, self.catalog)


def group_keys(group: exp.Expression) -> Iterator[exp.Expression]:
    """The expressions that GROUP BY groups by as they are written, those of its sets included."""
    for part in group.iter_expressions():
        if isinstance(part, SETS):
            yield from group_keys(part)
        else:
            yield part


def is_aggregate(node: exp.Expression, catalog: Catalog) -> bool:
    """Whether the node calls an aggregate function."""
    if isinstance(node, exp.AggFunc):
        return True
    return isinstance(node, exp.Anonymous) and catalog.is_aggregate(node.name)


def _is_windowed(function: exp.Expression) -> bool:
    """Whether a function with its FILTER and the like is computed over a window."""
    while isinstance(function.parent, WRAPPERS) and function.arg_key == "this":
        function = function.parent
    return isinstance(function.parent, exp.Window) and function.arg_key == "this"


def _is_bare(key: exp.Expression) -> bool:
    return isinstance(key, exp.Column) and not key.table
