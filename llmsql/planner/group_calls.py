"""`llm_agg` as SQL can run it: an aggregate that collects a group's rows in their order, and a call on the list.

    llm_agg('Summarise', title, year ORDER BY year) FILTER (WHERE year > 2000)

becomes

    llm_agg('Summarise', list({'title': title, 'year': year} ORDER BY year, ...) FILTER (WHERE year > 2000) AS rows)

in which `list` is the SQL engine's own aggregate, and llm_agg a function of each row above it, planned as any other.
Spark's lists come in any order, and are put in theirs (sorted_lists.py).
The fields after the list are the group's keys, which are not asked about but name a group that fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from sqlglot import exp

from llmsql.errors import CallError
from llmsql.planner.calls import (
    AGGREGATE,
    call_text,
    has_llm_call,
    is_option,
    own_calls,
    parse_call,
    position,
    positional_arguments,
)
from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import is_star, item_place, sources, visible_ctes
from llmsql.planner.naming import name_outputs
from llmsql.planner.plan import ROW_NUMBER
from llmsql.planner.planning import TEXT, Planning
from llmsql.planner.scope import Scope
from llmsql.planner.sorted_lists import sorted_items, with_keys
from llmsql.prompt import PLACEHOLDER

OWN_NUMBER = "__llmsql_row"  # of rows whose table has no ROW_NUMBER
SEVERAL = "rows"  # what a list of rows with several fields is called


def write_group_calls(statement: exp.Expression, catalog: Catalog) -> None:
    """Rewrite every `llm_agg` of a statement, in place.

    Raises:
        CallError: one is written wrongly, or stands where there are no groups.
    """
    if not any(_is_group_call(node) for node in statement.find_all(exp.Anonymous)):
        return
    planning = Planning(catalog)
    planning.note_originals(statement)
    for select in reversed(list(statement.find_all(exp.Select))):
        if any(_is_group_call(node) for node in own_calls(select)):
            name_outputs(select, catalog.dialect)
            _write_select(Scope(select, planning))
    for node in statement.find_all(exp.Anonymous):
        if _is_group_call(node) and not node.meta.get(TEXT):
            line, column = position(node)
            raise CallError(f"{AGGREGATE} is an aggregate and must stand in a SELECT", line=line, column=column)


def _is_group_call(node: exp.Expression) -> bool:
    return isinstance(node, exp.Anonymous) and node.name.lower() == AGGREGATE


def _write_select(scope: Scope) -> None:
    nodes = [node for node in own_calls(scope.select) if _is_group_call(node)]
    dialect = scope.catalog.dialect
    for node in nodes:
        if dialect != "duckdb" and _is_list_call(node):
            _name_list(node, dialect)
    nodes = [node for node in nodes if not node.meta.get(TEXT)]
    for node in nodes:
        inside = [found for part in node.expressions for found in part.find_all(exp.AggFunc, exp.Anonymous)]
        if any(isinstance(found, exp.AggFunc) or _is_group_call(found) for found in inside):
            _fail(node, f"an aggregate stands inside {AGGREGATE}: compute it in a subquery in FROM")
        if node.find_ancestor(exp.Where) is not None and node.find_ancestor(exp.Filter) is None:
            _fail(node, f"WHERE sees rows, not groups: {AGGREGATE} can stand in the SELECT list, HAVING or ORDER BY")
    written = [_Written.of(node, scope) for node in nodes]
    by_input = [one for one in written if not one.order and one.window is None and dialect == "duckdb"]
    order = _input_order(scope) if by_input else None
    keys = _group_keys(scope)
    for one in written:
        first = [order.copy()] if order is not None and one in by_input else one.order
        one.top.replace(one.call(first, keys, dialect))


def _is_list_call(node: exp.Anonymous) -> bool:
    """Whether the user wrote the aggregate that makes the list, as it must be where nothing is planned."""
    fields = positional_arguments(node)[1:]  # behind the prompt
    return len(fields) == 1 and not isinstance(fields[0], exp.Order) and fields[0].find(exp.AggFunc) is not None


def _name_list(node: exp.Anonymous, dialect: str) -> None:
    node.meta[TEXT] = call_text(node, dialect)
    rows = positional_arguments(node)[1]
    if not isinstance(rows, exp.Alias):
        rows.replace(exp.alias_(rows.copy(), SEVERAL, quoted=True))


@dataclass
class _Written:
    """One `llm_agg` as the user wrote it; `top` is the whole of it, with FILTER and OVER."""

    node: exp.Anonymous
    top: exp.Expression
    fields: tuple[tuple[str, exp.Expression], ...]
    order: list[exp.Expression]
    where: exp.Expression | None = None
    window: exp.Window | None = None

    @classmethod
    def of(cls, node: exp.Anonymous, scope: Scope) -> _Written:
        parsed = parse_call(node, scope.catalog, scope.star_columns)
        names = {name.lower() for name, _ in parsed.fields}
        for match in PLACEHOLDER.finditer(parsed.call.prompt or ""):
            if match.group(1) and match.group(1).lower() in names:
                _fail(
                    node, f"{AGGREGATE} asks about many rows: {match.group(0)} in its prompt would be one value of each"
                )
        order = [key for part in node.expressions if isinstance(part, exp.Order) for key in part.expressions]
        written = cls(node, node, parsed.fields, order)
        parent = node.parent
        while isinstance(parent, (exp.WithinGroup, exp.Filter, exp.Window)) and written.top.arg_key == "this":
            if isinstance(parent, exp.WithinGroup):
                written.order = order + parent.expression.expressions
            elif isinstance(parent, exp.Filter):
                written.where = parent.expression
            else:
                written.window = parent
            written.top, parent = parent, parent.parent
        return written

    def call(self, order: list[exp.Expression], keys: list[tuple[str, exp.Expression]], dialect: str) -> exp.Anonymous:
        """The call on the list of rows; rows that are equal in `order` come in the order of their values."""
        item = self._item()
        ties = [] if any(key.this == item for key in order) else [exp.Ordered(this=item.copy())]
        ordered = [key.copy() for key in order] + ties
        in_order = dialect == "duckdb"
        rows: exp.Expression = exp.ArrayAgg(
            this=exp.Order(this=item, expressions=ordered) if in_order else with_keys(item, ordered)
        )
        if self.where is not None:
            rows = exp.Filter(this=rows, expression=self.where.copy())
        if self.window is not None:
            window = self.window.copy()
            window.set("this", rows)
            rows = window
        if not in_order:
            rows = sorted_items(rows, ordered)
        if self.window is not None:
            keys = [(part.name or part.sql(), part) for part in self.window.args.get("partition_by") or []]
        name = self.fields[0][0] if len(self.fields) == 1 else SEVERAL
        arguments = [argument for argument in self.node.expressions if not isinstance(argument, exp.Order)]
        prompt = next(argument for argument in arguments if not is_option(argument))
        written = exp.Anonymous(
            this=AGGREGATE,
            expressions=[
                prompt.copy(),
                exp.alias_(rows, name, quoted=True, copy=False),
                *(exp.alias_(key.copy(), name, quoted=True, copy=False) for name, key in keys),
                *(argument.copy() for argument in arguments if is_option(argument)),
            ],
        )
        written.meta.update(self.node.meta)
        written.meta[TEXT] = call_text(self.top, dialect)
        return written

    def _item(self) -> exp.Expression:
        if len(self.fields) == 1:
            return self.fields[0][1].copy()
        named = [
            exp.PropertyEQ(this=exp.to_identifier(name, quoted=True), expression=expression.copy())
            for name, expression in self.fields
        ]
        return exp.Struct(expressions=named)


def _group_keys(scope: Scope) -> list[tuple[str, exp.Expression]]:
    """(name, expression) of the keys of GROUP BY, as far as they can be written beside an aggregate."""
    group = scope.select.args.get("group")
    if group is None:
        return []
    items = scope.select.expressions
    if group.args.get("all"):
        found = [item for item in items if not item.find(exp.AggFunc, exp.Window, exp.Query) and not is_star(item)]
        return [(item.alias_or_name, _any_value(item)) for item in found if isinstance(item.unalias(), exp.Column)]
    found = []
    for part in _keys_of(group):
        place = item_place(part)
        if place is not None and place < len(items):
            part = items[place]
        alias = next((item for item in items if item.alias and item.alias.lower() == part.name.lower()), None)
        if isinstance(part, exp.Column) and not part.table and part.name.lower() not in scope.source_columns():
            part = alias or part
        found.append(part)
    keys = [(item.alias_or_name or item.sql(dialect=scope.catalog.dialect), item.unalias()) for item in found]
    return [(name, key) for name, key in keys if not has_llm_call(key) and not key.find(exp.Query)]


def _keys_of(group: exp.Group) -> list[exp.Expression]:
    """The keys, those in ROLLUP, CUBE and GROUPING SETS among them."""
    found: list[exp.Expression] = []
    for part in group.expressions:
        is_set = isinstance(part, (exp.Rollup, exp.Cube, exp.GroupingSets))
        found += [key for key in (part.find_all(exp.Column) if is_set else [part]) if key not in found]
    return found


def _any_value(item: exp.Expression) -> exp.Expression:
    """A key of GROUP BY ALL, which cannot stand beside an aggregate as it is."""
    return exp.Anonymous(this="any_value", expressions=[item.unalias().copy()])


def _input_order(scope: Scope) -> exp.Expression | None:
    """What the rows of FROM are to be ordered by to come as they come in; None where they have no order."""
    select = scope.select
    if select.args.get("joins") or select.args.get("laterals") or len(sources(select)) != 1:
        return None
    source = sources(select)[0]
    if not _is_ordered(source, scope.catalog, visible_ctes(select)):
        return None
    name = source.alias_or_name
    if isinstance(source, exp.Table) and ROW_NUMBER not in scope.source_columns():
        number = exp.column(ROW_NUMBER, table=exp.to_identifier(name, quoted=True))
        if isinstance(source.this, exp.Identifier) and scope.catalog.binds(scope.original_source([number])):
            return exp.Ordered(this=number)
    if any(is_star(item) for item in select.expressions) or select.find(exp.Columns):
        return None  # it would show the number
    if any(not column.table and column.name.lower() == name.lower() for column in select.find_all(exp.Column)):
        return None  # a whole row, in which the number would be
    return exp.Ordered(this=_numbered(source, name))


def _numbered(source: exp.Expression, name: str) -> exp.Column:
    """Give the rows of an item of FROM a number, in a query around it that has the same name."""
    if isinstance(source, exp.Table) and not source.alias and any(sign in name for sign in "./\\"):
        name = PurePath(name).stem  # as DuckDB calls a file
    number = exp.alias_(exp.Window(this=exp.RowNumber()), OWN_NUMBER)
    query = exp.Select(expressions=[exp.Star(), number], from_=exp.From(this=source.copy()))
    alias = exp.TableAlias(this=exp.to_identifier(name or "llmsql_rows", quoted=True))
    source.replace(exp.Subquery(this=query, alias=alias))
    return exp.column(OWN_NUMBER, table=alias.this.copy())


def _is_ordered(source: exp.Expression, catalog: Catalog, ctes: list[exp.CTE]) -> bool:
    """Whether an item of FROM gives its rows in the same order each time: that of a table, or of ORDER BY."""
    if isinstance(source, exp.Table):
        cte = next((cte for cte in ctes if not source.db and cte.alias.lower() == source.name.lower()), None)
        if cte is not None:
            return _is_ordered(cte.this, catalog, [other for other in ctes if other is not cte])
        definition = catalog.view(source)
        return definition is None or _is_ordered(definition, catalog, [])
    if isinstance(source, exp.Subquery):
        return _is_ordered(source.this, catalog, ctes)
    if isinstance(source, exp.Select):
        if source.args.get("order"):
            return True
        unordered = any(source.args.get(part) for part in ("joins", "laterals", "group", "distinct", "having"))
        inside = sources(source)
        aggregates = any(item.find(exp.AggFunc) for item in source.expressions)
        return not unordered and not aggregates and len(inside) == 1 and _is_ordered(inside[0], catalog, ctes)
    return isinstance(source, (exp.Values, exp.Unnest))


def _fail(node: exp.Expression, message: str) -> None:
    line, column = position(node)
    raise CallError(message, line=line, column=column)
