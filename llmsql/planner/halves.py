"""A SELECT cut in two: a subquery in FROM that computes some of its expressions, and a SELECT of rows above it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlglot import exp

from llmsql.planner.clauses import attach_ctes, conjuncts, is_star, sources, table_named, visible_ctes
from llmsql.planner.determinism import volatile_function
from llmsql.planner.grouping import WRAPPERS
from llmsql.planner.planning import ANY_ORDER, CORRELATED, null_calls
from llmsql.planner.scope import Scope
from llmsql.planner.scratch_names import fresh_name

BELOW = ("where", "from_", "joins", "laterals")
ABOVE = ("order", "qualify", "having", "distinct", "windows")  # clauses that can be written over a subquery
NAMED = (exp.Alias, exp.Column, exp.Star)


class Uncuttable(Exception):
    """The SELECT cannot be cut; it must be planned as it stands."""


class Halves:
    """The lower half of a SELECT as it grows while the upper one is written.

    Args:
        scope: of the SELECT, whose calls are named already.
        kind: of the subquery, for its name.
        computed: whether the lower half computes an expression as a whole.

    Raises:
        Uncuttable: the SELECT has parts that mean something else, or cannot stand, above a subquery; or a query around
            it gives it values.
    """

    def __init__(self, scope: Scope, kind: str, computed: Callable[[exp.Expression], bool]):
        if any(node.meta.get(CORRELATED) for node in scope.calls()) or not scope.stands_alone():
            raise Uncuttable
        self.scope = scope
        self.select = scope.select
        self.name = fresh_name(kind)
        self._computed = computed
        self._items: dict[str, exp.Expression] = {}
        self.aliases = {item.alias.lower(): item for item in self.select.expressions if isinstance(item, exp.Alias)}
        self._source_columns = set(scope.source_columns())
        self._shared = _shared_names(scope)
        self._sources = {item.alias_or_name.lower() for item in sources(self.select)}
        self._require_cuttable()

    def above(self, expression: exp.Expression) -> exp.Expression:
        """An expression of the SELECT over the columns of the subquery."""
        return self._above(expression, frozenset())

    def text(self, expression: exp.Expression) -> str:
        """The same for all ways to write the same columns."""

        def plain(node: exp.Expression) -> exp.Expression:
            if not isinstance(node, exp.Column) or isinstance(node.this, exp.Star):
                return node
            name, table = node.name.lower(), node.table.lower()
            if table in self._sources and not node.args.get("db") and name not in self._shared:
                table = ""
            return exp.column(name, table=table or None, quoted=True)

        text: str = expression.unnest().transform(plain).sql(dialect=self.scope.catalog.dialect)
        return text

    def is_alias(self, node: exp.Expression) -> bool:
        """Whether the node is the name of an item of the SELECT list, and of no column."""
        if not isinstance(node, exp.Column) or node.table:
            return False
        return node.name.lower() in self.aliases and node.name.lower() not in self._source_columns

    def expand_aliases(self, condition: exp.Expression) -> exp.Expression:
        """A condition with the expressions that the SELECT list's names in it stand for."""

        def written(node: exp.Expression) -> exp.Expression:
            if not isinstance(node, exp.Column) or node.table or node.name.lower() not in self.aliases:
                return node
            value = self.aliases[node.name.lower()].this
            if node.name.lower() in self._source_columns:
                if self.text(value) == self.text(node):
                    return node
                raise Uncuttable  # a column or an alias
            return exp.paren(value.copy())

        return condition.copy().transform(written)

    def cut(self, lower: exp.Select, upper: dict[str, Any]) -> None:
        """Put the subquery in the place of FROM; the rows above it come in any order.

        Args:
            lower: the subquery with its clauses, but without items and FROM.
            upper: clauses of the SELECT above it, over its columns.
        """
        items = self._upper_items()
        keys = [(key, self._key(key.this if isinstance(key, exp.Ordered) else key)) for key in self._order_keys()]
        for key, written in keys:
            if isinstance(key, exp.Ordered):
                key.set("this", written)
            else:
                key.replace(written)
        self.select.set("expressions", items)
        for clause, value in upper.items():
            self.select.set(clause, value)
        lower.set(
            "expressions", [exp.alias_(item, name) for name, item in self._items.items()] or [exp.Literal.number(1)]
        )
        for part in ("from_", "joins", "laterals"):
            value = self.select.args.get(part)
            self.select.set(part, None)
            lower.set(part, value)
        alias = exp.TableAlias(this=table_named(self.name).this)
        self.select.set("from_", exp.From(this=exp.Subquery(this=lower, alias=alias)))
        self.select.meta[ANY_ORDER] = True

    def _upper_items(self) -> list[exp.Expression]:
        """The SELECT list over the columns of the subquery, each item under its name."""
        names = self._names()
        found = []
        for index, item in enumerate(self.select.expressions):
            if is_star(item) or isinstance(item, exp.Column):
                columns = self.scope.item_columns(item)
            else:
                columns = [(item.alias or names[index], item.unalias())]
            found += [exp.alias_(self.above(value), name, quoted=True, copy=False) for name, value in columns]
        return found

    def _above(self, node: exp.Expression, bound: frozenset[str], function: bool = False) -> exp.Expression:
        if isinstance(node, (exp.Query, exp.Identifier)):
            return node.copy()
        if not function and self._computed(node):
            return self._column(node)
        if isinstance(node, exp.Column):
            if self.is_alias(node) or (not node.table and node.name.lower() in bound):
                return node.copy()
            raise Uncuttable
        if isinstance(node, exp.Lambda):
            bound |= {parameter.name.lower() for parameter in node.expressions}
        function = isinstance(node, exp.Window) or (function and isinstance(node, WRAPPERS))
        written = node.copy()
        for child in list(written.iter_expressions()):
            child.replace(self._above(child, bound, function and child.arg_key == "this"))
        return written

    def _column(self, expression: exp.Expression) -> exp.Column:
        text = self.text(expression)
        name = next((name for name, known in self._items.items() if self.text(known) == text), None)
        if name is None:
            name = f"{self.name}_c{len(self._items)}"
            self._items[name] = expression.unnest().copy()
        return exp.column(name, table=self.name)

    def _key(self, key: exp.Expression) -> exp.Expression:
        """A key of ORDER BY: an alias comes before a column here, and names and positions stay as they are."""
        is_name = isinstance(key, exp.Column) and not key.table and key.name.lower() in self.aliases
        return key.copy() if is_name else self.above(key)

    def _order_keys(self) -> list[exp.Expression]:
        """The keys of ORDER BY and DISTINCT ON."""
        order, distinct = self.select.args.get("order"), self.select.args.get("distinct")
        on = distinct.args.get("on") if distinct is not None else None
        return [*(order.expressions if order is not None else []), *(on.expressions if on is not None else [])]

    def _names(self) -> dict[int, str]:
        """The names of the items that have none of their own, as the SQL engine gives them."""
        unnamed = [i for i, item in enumerate(self.select.expressions) if not isinstance(item, NAMED)]
        if not unnamed:
            return {}
        if any(is_star(item) for item in self.select.expressions):
            raise Uncuttable
        found = self.scope.catalog.columns(self.scope.alone())
        return {index: found[index][0] for index in unnamed}

    def _require_cuttable(self) -> None:
        if self.select.args.get("sample") or self.select.find(exp.Columns) is not None:
            raise Uncuttable
        if any(item.find(exp.Unnest, exp.Explode) for item in self.select.expressions):
            raise Uncuttable
        parts = list(self._upper_parts())
        if any(volatile_function(part, self.scope.catalog) is not None for part in parts):
            raise Uncuttable  # it may be that it answers anew for each group, or for each row
        for part in parts:
            for query in part.find_all(exp.Select, exp.SetOperation):
                alone = null_calls(query)
                alone.set("with_", None)
                if not self.scope.catalog.binds(attach_ctes(alone, visible_ctes(query))):
                    raise Uncuttable  # its columns would have to be told from those of the SELECT

    def _upper_parts(self) -> Iterator[exp.Expression]:
        yield from self.select.expressions
        for name in ABOVE:
            value = self.select.args.get(name)
            yield from value if isinstance(value, list) else [value] if value is not None else []


def _shared_names(scope: Scope) -> set[str]:
    """The names of columns that more than one source has, those that USING makes one included."""
    names = scope.source_columns()
    using = [
        column.name.lower() for join in scope.select.args.get("joins") or [] for column in join.args.get("using") or []
    ]
    return {name for name in names if names.count(name) > 1 or f"{name}_1" in names} | set(using)


def leading(conditions: list[exp.Expression], holds: Callable[[exp.Expression], bool]) -> int:
    """How many conditions at the start satisfy `holds`."""
    return next((index for index, condition in enumerate(conditions) if not holds(condition)), len(conditions))


def clause_conjuncts(select: exp.Select, clause: str) -> list[exp.Expression]:
    """The predicates that AND connects in HAVING or QUALIFY."""
    found = select.args.get(clause)
    return conjuncts(found.this) if found is not None else []
