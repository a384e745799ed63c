"""Conditions that ask the model in ON of joins that are not inner: the pairs for which they hold are found first.

    a LEFT JOIN b ON a.k = b.k AND llm_filter('…', a.x, b.y)

The condition depends on the values (x, y) alone. A query of its own, which is planned like any other, finds the pairs
of them for which it holds, among rows that the plain part of ON lets meet. The join then looks a pair up: each x has a
number, each row of b the list of numbers that its y goes with. Neither side gets more or fewer rows by that, so rows
without a partner stay as they are whatever the kind of join.

    WITH pairs AS (SELECT a.x AS l0, b.y AS r0 FROM a JOIN b ON a.k = b.k AND llm_filter('…', a.x, b.y) GROUP BY ALL),
      left_values AS (SELECT l0, row_number() OVER () AS number FROM (SELECT DISTINCT l0 FROM pairs)),
      right_values AS (SELECT r0, list(number) AS numbers FROM pairs JOIN left_values USING (l0) GROUP BY r0)
    a LEFT JOIN left_values ON a.x = l0
      LEFT JOIN (SELECT b.*, numbers FROM b LEFT JOIN right_values ON b.y = r0) b ON a.k = b.k AND numbers has number
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from llmsql.planner.added_ctes import Unmovable, add_ctes, cte, stable_sources
from llmsql.planner.calls import calls_in
from llmsql.planner.clauses import (
    ancestors,
    attach_ctes,
    conjuncts,
    hide_columns,
    is_star,
    sources,
    table_named,
    visible_ctes,
)
from llmsql.planner.exact import same_value
from llmsql.planner.hazards import may_raise
from llmsql.planner.naming import name_calls
from llmsql.planner.plan import ROW_NUMBER
from llmsql.planner.planning import null_calls
from llmsql.planner.scope import Scope, joins_sources
from llmsql.planner.scratch_names import fresh_name


def pairs_first(scope: Scope) -> bool:
    """Take the calls out of the first condition of a join from which WHERE cannot take them; False if there is none.

    Raises:
        CallError: a call is written wrongly.
    """
    joins: list[exp.Join] = scope.select.args.get("joins") or []
    for index, join in enumerate(joins):
        condition = join.args.get("on")
        if condition is None or is_filter(join, joins[index + 1 :]) or not calls_in(condition):
            continue
        name_calls(scope)
        try:
            _take_out(scope, index)
        except Unmovable:
            continue
        return True
    return False


def filters_to_where(scope: Scope) -> None:
    """A condition with calls of an inner join is one of WHERE, where it comes after the cheap ones."""
    joins = scope.select.args.get("joins") or []
    for index, join in enumerate(joins):
        condition = join.args.get("on")
        if condition is None or not is_filter(join, joins[index + 1 :]) or not calls_in(condition):
            continue
        asking = asking_conditions(scope, condition)
        kept = [conjunct for conjunct in conjuncts(condition) if not any(conjunct is one for one in asking)]
        for conjunct in asking:
            scope.select.where(conjunct.copy(), copy=False)
        join.set("on", exp.and_(*kept) if kept else exp.true())


def is_filter(join: exp.Join, later: Sequence[exp.Join]) -> bool:
    """Whether the condition of a join says the same in WHERE: an inner join, whose rows no later join brings back."""
    inner = not join.side and not join.method and join.kind in ("", "INNER")
    return inner and not any(after.side in ("RIGHT", "FULL") for after in later)


def asking_conditions(scope: Scope, on: exp.Expression) -> list[exp.Expression]:
    """The conditions of ON with calls, and those after them that may raise for pairs that a call would have dropped."""
    found: list[exp.Expression] = []
    for condition in conjuncts(on):
        raising = found and not joins_sources(condition) and may_raise(condition, scope.is_text)
        if calls_in(condition) or raising:
            found.append(condition)
    return found


def _take_out(scope: Scope, index: int) -> None:
    select = scope.select
    join = select.args["joins"][index]
    sides = _Sides(scope, index)
    conditions = conjuncts(join.args["on"])
    asking = asking_conditions(scope, join.args["on"])
    if any(condition.find(exp.Query) is not None for condition in asking):
        raise Unmovable
    plain = [condition for condition in conditions if not any(condition is other for other in asking)]
    left, right = sides.columns(asking)
    if not left and not right:
        raise Unmovable  # constants alone
    read = [select.args["from_"].this, *(item.this for item in select.args["joins"][: index + 1])]
    ctes = stable_sources(read, select, scope.planning)
    name = fresh_name("pairs")
    lefts = {f"{name}_l{number}": column for number, column in enumerate(left)}
    rights = {f"{name}_r{number}": column for number, column in enumerate(right)}
    columns = {**lefts, **rights}
    pairs = exp.Select(expressions=[exp.alias_(column.copy(), alias) for alias, column in columns.items()])
    pairs.set("from_", select.args["from_"].copy())
    pairs.set("joins", [item.copy() for item in select.args["joins"][:index]])
    met = exp.and_(*conditions)
    pairs.append("joins", exp.Join(this=join.this.copy(), kind="INNER", on=met))
    where = sides.surviving(join)
    if where:
        pairs.set("where", exp.Where(this=exp.and_(*where)))
    pairs.set("group", exp.Group(all=True))
    ctes.append(cte(name, pairs))
    found: exp.Expression
    if left and right:
        ctes += _numbered(scope, name, list(lefts), list(rights))
        has = exp.Anonymous(
            this="list_contains", expressions=[sides.shown(f"{name}_numbers"), _of(f"{name}_left", f"{name}_number")]
        )
        found = exp.paren(has)
    elif left:
        ctes.append(cte(f"{name}_left", _all_of(name, list(lefts), exp.true(), f"{name}_number")))
        found = exp.Not(this=exp.Is(this=_of(f"{name}_left", f"{name}_number"), expression=exp.null()))
    else:
        ctes.append(cte(f"{name}_right", _all_of(name, list(rights), exp.true(), f"{name}_numbers")))
        found = exp.Not(this=exp.Is(this=sides.shown(f"{name}_numbers"), expression=exp.null()))
    if right:
        join.set("this", sides.with_numbers(name, rights))
    join.set("on", exp.and_(*plain, found))
    if left:
        same = _same(scope, lefts, f"{name}_left")
        select.args["joins"].insert(index, exp.Join(this=table_named(f"{name}_left"), side="LEFT", on=same))
        select.set("joins", select.args["joins"])
    shown = right and join.kind not in ("SEMI", "ANTI")
    _hide(
        select,
        [*lefts, f"{name}_number"] if left else [],
        [f"{name}_numbers"] if shown else [],
        sides.right,
    )
    add_ctes(select, ctes)


class _Sides:
    """The two sides of one join, and which of them a column is of."""

    def __init__(self, scope: Scope, index: int):
        self.scope = scope
        self.select = scope.select
        join = self.select.args["joins"][index]
        self.source = join.this
        self.right = join.this.alias_or_name
        self._later = self.select.args["joins"][index + 1 :]
        self._before = [self.select.args["from_"].this, *(item.this for item in self.select.args["joins"][:index])]
        self._lefts = {item.alias_or_name.lower() for item in self._before}
        self._names: dict[str, set[str]] = {}
        self._index = index
        self._require_plain(join)

    def columns(self, conditions: list[exp.Expression]) -> tuple[list[exp.Column], list[exp.Column]]:
        """The columns in the conditions, by side."""
        found: dict[str, list[exp.Column]] = {"left": [], "right": []}
        for condition in conditions:
            for column in condition.find_all(exp.Column):
                side = self._side(column)
                if column not in found[side]:
                    found[side].append(column)
        return found["left"], found["right"]

    def surviving(self, join: exp.Join) -> list[exp.Expression]:
        """The predicates of WHERE that drop a row of the side that the join keeps, whatever the other side."""
        if join.side == "FULL" or any(after.side in ("RIGHT", "FULL") for after in self._later):
            return []
        kept = "right" if join.side == "RIGHT" else "left"
        found = []
        for predicate in self.scope.split_where().cheap:
            if predicate.find(exp.Query) is not None or may_raise(predicate, self.scope.is_text):
                continue
            try:
                sides = {self._side(column) for column in predicate.find_all(exp.Column)}
            except Unmovable:
                continue
            if sides == {kept}:
                found.append(predicate)
        return found

    def shown(self, name: str) -> exp.Column:
        """A column that `with_numbers` adds to the right side."""
        return exp.column(name, table=exp.to_identifier(self.right, quoted=True))

    def with_numbers(self, name: str, rights: dict[str, exp.Column]) -> exp.Subquery:
        """The right side with the numbers of the left values that each of its rows goes with."""
        alias = exp.to_identifier(self.right, quoted=True)
        items: list[exp.Expression] = [exp.column(exp.Star(), table=alias.copy())]
        if any(column.name.lower() == ROW_NUMBER for column in self.select.find_all(exp.Column)):
            items.append(exp.column(ROW_NUMBER, table=alias.copy()))
        items.append(_of(f"{name}_right", f"{name}_numbers"))
        query = exp.Select(expressions=items, from_=exp.From(this=self.source.copy()))
        same = _same(self.scope, rights, f"{name}_right")
        query.append("joins", exp.Join(this=table_named(f"{name}_right"), side="LEFT", on=same))
        return exp.Subquery(this=query, alias=exp.TableAlias(this=alias))

    def _side(self, column: exp.Column) -> str:
        table = column.table.lower()
        if column.args.get("db") or isinstance(column.this, exp.Star):
            raise Unmovable
        if table == self.right.lower():
            return "right"
        if table in self._lefts:
            return "left"
        name = table or column.name.lower()  # a column, or one that is a struct
        sides = [side for side in ("left", "right") if name in self._described(side)]
        if len(sides) != 1:
            raise Unmovable
        return sides[0]

    def _described(self, side: str) -> set[str]:
        if side not in self._names:
            query = exp.Select(expressions=[exp.Star()])
            if side == "left":
                query.set("from_", self.scope.original.args["from_"].copy())
                query.set("joins", [item.copy() for item in self.scope.original.args["joins"][: self._index]])
            else:
                query.set("from_", exp.From(this=null_calls(self.source)))
            described = self.scope.catalog.columns(attach_ctes(query, visible_ctes(self.scope.original)))
            self._names[side] = {name.lower() for name, _ in described}
        return self._names[side]

    def _require_plain(self, join: exp.Join) -> None:
        """Refuse what reads differently when a side stands in a subquery."""
        select = self.select
        names = [item.alias_or_name.lower() for item in sources(select)]
        if join.method or not self.right or names.count(self.right.lower()) > 1 or select.args.get("laterals"):
            raise Unmovable
        if isinstance(self.source, exp.Table):
            if not isinstance(self.source.this, exp.Identifier) or not (self.source.alias or self.right.isidentifier()):
                raise Unmovable
        elif not isinstance(self.source, exp.Subquery) or not self._is_alone(self.source):
            raise Unmovable
        if select.args.get("sample") or select.find(exp.Columns) is not None or not self.scope.stands_alone():
            raise Unmovable
        if any(isinstance(outer, exp.With) and outer.args.get("recursive") for outer in ancestors(select)):
            raise Unmovable
        shown = {
            item.table.lower() if isinstance(item, exp.Column) else "" for item in select.expressions if is_star(item)
        }
        for column in select.find_all(exp.Column):
            if not column.table and column.name.lower() == self.right.lower():
                raise Unmovable  # a whole row
            if column.name.lower() == ROW_NUMBER and shown & {"", self.right.lower()}:
                raise Unmovable  # it would be shown

    def _is_alone(self, source: exp.Expression) -> bool:
        query = exp.select("1").from_(null_calls(source))
        return self.scope.catalog.binds(attach_ctes(query, visible_ctes(self.scope.original)))


def _numbered(scope: Scope, name: str, lefts: list[str], rights: list[str]) -> list[exp.CTE]:
    """Numbers for the left values, and for the right values the numbers that they go with."""
    # DuckDB computes the CTE once; where it may be computed again, the values must get the same numbers.
    once = scope.catalog.dialect == "duckdb"
    order = None if once else exp.Order(expressions=[exp.Ordered(this=exp.column(column)) for column in lefts])
    number = exp.alias_(exp.Window(this=exp.RowNumber(), order=order), f"{name}_number")
    values = exp.Select(expressions=[*[exp.column(column) for column in lefts], number])
    distinct = exp.Select(expressions=[exp.column(column) for column in lefts], group=exp.Group(all=True))
    distinct.set("from_", exp.From(this=table_named(name)))
    values.set("from_", exp.From(this=exp.Subquery(this=distinct)))
    numbers = exp.alias_(exp.ArrayAgg(this=_of(f"{name}_left", f"{name}_number")), f"{name}_numbers")
    partners = exp.Select(expressions=[*[_of(name, column) for column in rights], numbers], group=exp.Group(all=True))
    partners.set("from_", exp.From(this=table_named(name)))
    same = _same(scope, {column: _of(name, column) for column in lefts}, f"{name}_left")
    partners.append("joins", exp.Join(this=table_named(f"{name}_left"), kind="INNER", on=same))
    return [cte(f"{name}_left", values), cte(f"{name}_right", partners)]


def _all_of(name: str, columns: list[str], value: exp.Expression, alias: str) -> exp.Select:
    items = [*[exp.column(column) for column in columns], exp.alias_(value, alias)]
    return exp.Select(expressions=items, from_=exp.From(this=table_named(name)))


def _same(scope: Scope, values: dict[str, exp.Column], table: str) -> exp.Expression:
    by_bytes = scope.planning.by_bytes
    same = [same_value(value.copy(), _of(table, name), by_bytes=by_bytes) for name, value in values.items()]
    return exp.and_(*same, copy=False)


def _of(table: str, column: str) -> exp.Column:
    return exp.column(column, table=table)


def _hide(select: exp.Select, lefts: list[str], rights: list[str], right: str) -> None:
    """The SELECT's stars must not show the columns that were added."""
    for item in select.expressions:
        star = item.this if isinstance(item, exp.Column) else item
        if not isinstance(star, exp.Star):
            continue
        bare = item is star
        hidden = [*(lefts if bare else []), *(rights if bare or item.table.lower() == right.lower() else [])]
        hide_columns(star, hidden)
