"""The expressions beside a call, as they can be written over the rows that stages read."""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import clause_of
from llmsql.planner.determinism import volatile_function
from llmsql.planner.grouping import Grouping, is_aggregate
from llmsql.planner.planning import SAME_IN_GROUP, is_left_in_place
from llmsql.planner.scope import Scope

UNUSABLE = (exp.Query, exp.Window, exp.Unnest, exp.Explode, exp.Star, exp.Columns)
SOURCE = "llmsql_source"  # a name that means a column of FROM, although an alias is called the same


class Siblings:
    """Says which expressions of a SELECT a guard can use, and where guards end."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self._aliases = {item.alias.lower(): item.this for item in scope.select.selects if isinstance(item, exp.Alias)}
        self._has_sets = Grouping(scope.select, scope.catalog).has_sets

    def usable(self, sibling: exp.Expression, call: exp.Expression) -> exp.Expression | None:
        """A copy over sources and staged answers; None where it has calls yet to come, sees other rows, or varies."""
        clause = clause_of(call, self.scope.select)
        written: exp.Expression | None = sibling.transform(_row_value)
        for _ in self._aliases:
            if written is not None and self._alias_columns(written):
                written = self._without_aliases(written, clause)
        if written is None or self._alias_columns(written):
            return None
        if calls_in(written) or is_left_in_place(written) or written.find(*UNUSABLE) is not None:
            return None
        if any(is_aggregate(function, self.scope.catalog) for function in written.find_all(exp.Func)):
            return None
        return None if volatile_function(written, self.scope.catalog) is not None else written

    def end_at(self, node: exp.Expression) -> bool:
        """Whether what stands above the node sees other rows than what stands below it."""
        if isinstance(node, exp.Window):
            return True
        return self._has_sets and is_aggregate(node, self.scope.catalog)

    def _alias_columns(self, written: exp.Expression) -> list[exp.Column]:
        found = [c for c in written.find_all(exp.Column) if not c.table and c.name.lower() in self._aliases]
        return [column for column in found if column.meta.get(SOURCE) is None]

    def _without_aliases(self, written: exp.Expression, clause: str) -> exp.Expression | None:
        """The aliases of the SELECT list written out; None where a name may mean an alias or a column."""
        for column in self._alias_columns(written):
            if column.name.lower() not in self.scope.source_columns():
                value = exp.paren(self._aliases[column.name.lower()].copy())
            elif clause in ("expressions", "where", ""):
                value = column.copy()
                value.meta[SOURCE] = True
            else:
                return None
            if column is written:
                return value
            column.replace(value)
        return written


def _row_value(node: exp.Expression) -> exp.Expression:
    """An answer that was made a value of its group, as the value that it has in each row of the group."""
    return node.expressions[0] if node.meta.get(SAME_IN_GROUP) else node
