"""Rows chosen before the model is asked: read once into a scratch table, from which the SELECT then reads.

Three reasons to do so: a LIMIT that no call has a say in chooses the rows first; a LIMIT above calls in WHERE takes the
rows one after the other until it has enough; and a SELECT over one table without ORDER BY keeps the table's order,
which a join with the answers would not.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from llmsql.planner.calls import calls_in, is_constant, own_calls
from llmsql.planner.clauses import CHANGING, item_place, table_named
from llmsql.planner.grouping import Grouping
from llmsql.planner.plan import ROW_NUMBER, Materialise
from llmsql.planner.planning import ANY_ORDER
from llmsql.planner.scope import Scope
from llmsql.planner.scratch_names import fresh_name

LIMITED = ("order", "limit", "offset")


@dataclass(frozen=True)
class EarlyStop:
    """The rows in the order in which the SELECT takes them, and how many are enough for LIMIT and OFFSET."""

    rows: Materialise
    enough: int


def limit_first(scope: Scope) -> bool:
    """Choose the rows that the SELECT shows, then ask; False where a call has a say in which rows these are."""
    select = scope.select
    if not (select.args.get("limit") or select.args.get("offset")) or not _shows_rows(scope):
        return False
    asking = [item for item in select.expressions if calls_in(item)]
    if not asking:
        return False
    if len(own_calls(select)) != sum(len(calls_in(item)) for item in asking) or not _order_is_plain(scope, asking):
        return False
    where = select.args.get("where")
    reason = "LIMIT chooses the rows before the model is asked"
    rows = _Carrier(scope).rewrite(reason, [where.this] if where is not None else [], LIMITED)
    scope.planning.steps.append(rows)
    return True


def stop_early(scope: Scope) -> EarlyStop | None:
    """Let the SELECT read its rows from a table that is filled as long as LIMIT lacks rows that pass WHERE's calls.

    None where there is no LIMIT above such a WHERE, where more than WHERE and LIMIT decides which rows are shown, or
    where a call has a say in their order.
    """
    enough = _rows_taken(scope) if scope.planning.switches.early_stop else None
    if enough is None or not _shows_rows(scope):
        return None
    parts = scope.split_where()
    asking = [item for item in scope.select.expressions if calls_in(item)]
    if not parts.asking or parts.rest or not _order_is_plain(scope, asking):
        return None
    if any(predicate.find(exp.Query) is not None for predicate in parts.asking):
        return None  # its columns would have to be told from those of the SELECT
    rows = _Carrier(scope).rewrite("until LIMIT has its rows", parts.first, ("order",), parts.asking)
    return EarlyStop(rows, enough)


def _rows_taken(scope: Scope) -> int | None:
    """LIMIT and OFFSET together; None without a LIMIT that is a number of rows."""
    limit, offset = scope.select.args.get("limit"), scope.select.args.get("offset")
    if not isinstance(limit, exp.Limit) or limit.args.get("limit_options") or limit.args.get("expressions"):
        return None
    counts = []
    for clause in (limit, offset):
        if clause is None:
            continue
        if not is_constant(clause.expression):
            return None
        count = scope.catalog.constant(clause.expression)
        if not isinstance(count, int) or isinstance(count, bool):
            return None
        counts.append(count)
    return sum(counts)


def keep_order(scope: Scope) -> bool:
    """Read the rows that pass the predicates without calls; False where the order of rows is free or given."""
    select = scope.select
    if select.meta.get(ANY_ORDER) or any(select.args.get(part) for part in ("order", "joins", "laterals")):
        return False
    if select.find_ancestor(exp.Select, exp.SetOperation, *CHANGING) is not None or not _shows_rows(scope):
        return False  # what reads the rows has them in any order
    parts = scope.split_where()
    kept = [*parts.asking, *parts.rest]
    if any(predicate.find(exp.Query) is not None for predicate in kept):
        return False  # its columns would have to be told from those of the SELECT
    scope.planning.steps.append(_Carrier(scope).rewrite("to keep the order of its rows", parts.first, (), kept))
    return True


def _shows_rows(scope: Scope) -> bool:
    """Whether each result row is one row of FROM, with values computed from that row alone."""
    select = scope.select
    if select.args.get("from_") is None or Grouping(select, scope.catalog).is_grouped:
        return False
    if any(select.args.get(part) for part in ("distinct", "qualify", "group", "having", "windows", "sample")):
        return False
    if any(item.find(exp.Window, exp.Query, exp.Unnest, exp.Explode) for item in select.expressions):
        return False
    return not any(star.args.get("replace") or star.args.get("rename") for star in _stars(select))


def _order_is_plain(scope: Scope, asking: list[exp.Expression]) -> bool:
    """Whether ORDER BY needs no call, and can be written over the sources."""
    order = scope.select.args.get("order")
    names = {item.alias.lower() for item in asking}
    for ordered in order.expressions if order is not None else []:
        key = ordered.this
        if isinstance(key, exp.Var):
            return False
        place = item_place(key)
        if place is not None:
            if _stars(scope.select):
                return False
            key = scope.select.expressions[place]
        if calls_in(key) or any(not c.table and c.name.lower() in names for c in key.find_all(exp.Column)):
            return False
    return True


class _Carrier:
    """Moves the reading of a SELECT's rows into a scratch table with the columns c0, c1, ... that it needs."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self.select = scope.select
        self.name = fresh_name("rows")
        self.carried: list[exp.Expression] = []
        aliases = {item.alias.lower() for item in self.select.expressions if isinstance(item, exp.Alias)}
        self.aliases = aliases - set(scope.source_columns())

    def rewrite(
        self,
        reason: str,
        where: list[exp.Expression],
        moved: tuple[str, ...],
        kept: list[exp.Expression] | None = None,
    ) -> Materialise:
        """The step that fills the scratch table; the SELECT is rewritten to read it.

        Args:
            reason: shown in the plan.
            where: predicates that choose the rows of the scratch table.
            moved: the clauses that choose them too.
            kept: predicates that stay in the SELECT.
        """
        select = self.select
        items: list[exp.Expression] = []
        for item in select.expressions:
            if calls_in(item):
                items.append(self._over_scratch(item))
                continue
            for name, expression in self.scope.item_columns(item):
                items.append(exp.alias_(self._over_scratch(expression), name, quoted=True, copy=False))
        staying = [self._over_scratch(conjunct) for conjunct in kept or []]
        order = select.args.get("order")
        if order is not None and "order" in moved:
            self._resolve(order)
        query = self.scope.source_query(self.carried or [exp.Literal.number(1)], where)
        for part in moved:
            if select.args.get(part) is not None:
                query.set(part, select.args[part].copy())
                select.set(part, None)
        for part in ("joins", "laterals", "where"):
            select.set(part, None)
        if staying:
            select.set("where", exp.Where(this=exp.and_(*staying, copy=False)))
        select.set("expressions", items)
        select.set("from_", exp.From(this=table_named(self.name)))
        select.set("order", exp.Order(expressions=[exp.Ordered(this=exp.column(ROW_NUMBER, table=self.name))]))
        columns = tuple(f"c{number}" for number in range(max(len(self.carried), 1)))
        sql = query.sql(dialect=self.scope.catalog.dialect)
        return Materialise(self.name, columns, sql, reason)

    def _over_scratch(self, expression: exp.Expression) -> exp.Expression:
        return expression.transform(lambda node: self._carry(node) if isinstance(node, exp.Column) else node)

    def _carry(self, column: exp.Column) -> exp.Column:
        if not column.table and column.name.lower() in self.aliases:
            return column
        for number, known in enumerate(self.carried):
            if known == column:
                return exp.column(f"c{number}", table=self.name)
        self.carried.append(column.copy())
        carried = exp.column(f"c{len(self.carried) - 1}", table=self.name)
        self.scope.carried[carried.sql(dialect=self.scope.catalog.dialect)] = column.copy()
        return carried

    def _resolve(self, order: exp.Order) -> None:
        """Put the expression for each position or alias that ORDER BY uses; the scratch table's query has neither."""
        by_alias = {item.alias.lower(): item.this for item in self.select.expressions if isinstance(item, exp.Alias)}

        def written(node: exp.Expression) -> exp.Expression:
            is_alias = isinstance(node, exp.Column) and not node.table and node.name.lower() in self.aliases
            return exp.paren(by_alias[node.name.lower()].copy()) if is_alias else node

        for ordered in order.expressions:
            key = ordered.this
            place = item_place(key)
            if place is not None:
                ordered.set("this", self.select.expressions[place].unalias().copy())
            elif isinstance(key, exp.Column) and not key.table and key.name.lower() in by_alias:
                ordered.set("this", by_alias[key.name.lower()].copy())
            else:
                ordered.set("this", key.transform(written))  # a column comes before an alias in an expression


def _stars(select: exp.Select) -> list[exp.Star]:
    found = [item.this if isinstance(item, exp.Column) else item for item in select.expressions]
    return [item for item in found if isinstance(item, exp.Star)]
