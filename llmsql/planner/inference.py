"""The type of an `llm` call that declares none, where the SQL around it says what is wanted.

llm('How old?', text) > 17          -> return_type := 'BIGINT'
llm('When?', text)::DATE            -> return_type := 'DATE'
WHERE llm('Is it fun?', title)      -> return_type := 'BOOLEAN'
llm('Which?', text) IN ('a', 'b')   -> choices := ['a', 'b', 'other']
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlglot import exp

from llmsql.errors import CallError, QueryError
from llmsql.planner.calls import call_text, is_option, parse_call
from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import is_above, is_star
from llmsql.planner.contexts import Context, context, declared
from llmsql.planner.naming import name_outputs
from llmsql.planner.planning import INFERRED, TEXT, TYPE, Planning
from llmsql.planner.scope import Scope

DECLARING = ("return_type", "choices", "schema", "regex")  # options that say what the answer is
OTHER = "other"  # the choice for answers that are none of the texts a call is compared with
PAIRS = (("yes", "no"), ("true", "false"))


def infer_types(statement: exp.Expression, catalog: Catalog) -> None:
    """Write what is inferred as options into the calls of a statement, in place; their types are noted already."""
    waiting = [node for node in statement.find_all(exp.Anonymous) if _is_open(node)]
    if not waiting:
        return
    planning = Planning(catalog)
    planning.note_originals(statement)
    written = _written_columns(statement, catalog)
    assigned = dict(_assignments(statement, catalog, written))
    while waiting:
        select = waiting[0].find_ancestor(exp.Select)
        equal = [node for node in waiting if node == waiting[0] and node.find_ancestor(exp.Select) is select]
        waiting = [node for node in waiting if not any(node is one for one in equal)]
        scope = None if select is None else Scope(select, planning)
        places = [place for node in equal for place in _places(node, scope, catalog, written, assigned)]
        _write(places, scope, catalog)


def _is_open(node: exp.Anonymous) -> bool:
    """Whether a call is one of `llm` that says nothing about its answer."""
    if node.name.lower() != "llm":
        return False
    return not any(is_option(part) and part.this.name.lower() in DECLARING for part in node.expressions)


@dataclass
class _Place:
    """Where the value of a call is used: the call itself, or a column that is the SELECT list's name for it."""

    node: exp.Expression
    call: exp.Anonymous
    context: Context


def _places(
    call: exp.Anonymous,
    scope: Scope | None,
    catalog: Catalog,
    written: dict[str, str],
    assigned: dict[int, Context],
) -> Iterator[_Place]:
    def type_of(node: exp.Expression) -> str | None:
        if not isinstance(node, exp.Column):
            return None
        return written.get(node.name.lower()) if scope is None else scope.column_type(node)

    def found(node: exp.Expression) -> Context:
        return context(node, type_of, catalog.constant)

    yield _Place(call, call, assigned.get(id(call)) or found(call))
    item = call.parent
    while isinstance(item, exp.Paren):
        item = item.parent
    if scope is None or not isinstance(item, exp.Alias) or item.parent is not scope.select:
        return
    named = [
        column
        for column in scope.select.find_all(exp.Column)
        if not column.table and column.name.lower() == item.alias.lower() and not is_above(item, column)
    ]
    if named and item.alias.lower() not in scope.source_columns():
        for column in named:
            if column.find_ancestor(exp.Select) is scope.select:
                yield _Place(column, call, found(column))


def _written_columns(statement: exp.Expression, catalog: Catalog) -> dict[str, str]:
    """The types of the columns, by their names in lower case, of the table that UPDATE or DELETE writes."""
    if not isinstance(statement, (exp.Update, exp.Delete)) or not isinstance(statement.this, exp.Table):
        return {}
    query = exp.Select(expressions=[exp.Star()], from_=exp.From(this=statement.this.copy()))
    try:
        return {name.lower(): kind for name, kind in catalog.columns(query)}
    except QueryError:
        return {}


def _write(places: list[_Place], scope: Scope | None, catalog: Catalog) -> None:
    """Write what the places agree on into their calls; where they do not agree, into each call what its place says."""
    typed = [place for place in places if place.context.sql_type]
    labelled = [place for place in places if place.context.labels]
    others = [place for place in places if not place.context.sql_type and not place.context.labels]
    agreed = _agreed(typed)
    if scope is not None and (typed or labelled):
        name_outputs(scope.select, catalog.dialect)
    if agreed is not None and not labelled:
        for place in places:
            _declare(place.call, "return_type", exp.Literal.string(agreed.sql_type), agreed, catalog)
        for place in others:
            if not place.context.any_type:  # a text is wanted there
                place.node.replace(exp.cast(place.node.copy(), "VARCHAR"))
    elif labelled and not typed and all(place.context.neutral for place in others):
        labels = _choices([label for place in labelled for label in place.context.labels])
        values = exp.Array(expressions=[exp.Literal.string(label) for label in labels])
        for place in places:
            _declare(place.call, "choices", values, labelled[0].context, catalog)
    else:
        for place in typed:
            if place.node is place.call:
                sql = exp.Literal.string(place.context.sql_type)
                _declare(place.call, "return_type", sql, place.context, catalog)


def _agreed(places: list[_Place]) -> Context | None:
    """What all places say: the type that is declared goes before those that numbers are compared in."""
    declared_first = [place.context for place in places if place.context.declared] or [one.context for one in places]
    kinds = {found.sql_type for found in declared_first}
    if kinds == {"BIGINT", "DOUBLE"} and not declared_first[0].declared:
        return next(found for found in declared_first if found.sql_type == "DOUBLE")
    if len(kinds) != 1:
        return None
    numeric = {"BIGINT", "DOUBLE"}
    if any(place.context.sql_type not in numeric | kinds for place in places):
        return None
    return declared_first[0]


def _choices(labels: list[str]) -> list[str]:
    """The texts that an answer may be: those it is compared with, and one for all others."""
    found = list(dict.fromkeys(labels))
    lower = [label.lower() for label in found]
    for pair in PAIRS:
        if set(lower) <= set(pair):
            missing = [word for word in pair if word not in lower]
            return sorted(
                found + [_spelt(word, found[0]) for word in missing], key=lambda word: pair.index(word.lower())
            )
    return found if OTHER in lower else [*found, OTHER]


def _spelt(word: str, like: str) -> str:
    """A word in the capitals of another."""
    return word.upper() if like.isupper() and len(like) > 1 else word.capitalize() if like[0].isupper() else word


def _declare(call: exp.Anonymous, option: str, value: exp.Expression, found: Context, catalog: Catalog) -> None:
    if not _is_open(call):
        return  # it stands at several places
    call.meta.setdefault(TEXT, call_text(call, catalog.dialect))
    call.append("expressions", exp.PropertyEQ(this=exp.to_identifier(option), expression=value.copy()))
    try:
        call.meta[TYPE] = parse_call(call, catalog, lambda star: [exp.column("x")]).call.sql_type
    except CallError:  # answers cannot be this
        call.expressions.pop()
        return
    shown = value.name if option == "return_type" else f"one of {value.sql(dialect=catalog.dialect)}"
    call.meta[INFERRED] = f"{shown}, because of {found.source}"


def _assignments(statement: exp.Expression, catalog: Catalog, written: dict[str, str]) -> Iterator[tuple[int, Context]]:
    """(id, context) of each call whose value goes to a column of a table as it is: of INSERT and UPDATE."""
    if isinstance(statement, exp.Update):
        for item in statement.expressions:
            if isinstance(item, exp.EQ) and isinstance(item.left, exp.Column):
                yield id(item.right.unnest()), _stored(written.get(item.left.name.lower()), item.left.name)
        return
    if not isinstance(statement, exp.Insert):
        return
    target = statement.this
    names = [column.name for column in target.expressions] if isinstance(target, exp.Schema) else []
    table = target.this if isinstance(target, exp.Schema) else target
    if not isinstance(table, exp.Table):
        return
    chosen = [exp.column(name, quoted=True) for name in names] or [exp.Star()]
    try:
        columns = catalog.columns(exp.Select(expressions=chosen, from_=exp.From(this=table.copy())))
    except QueryError:
        return
    by_name = {name.lower(): (name, kind) for name, kind in columns} if statement.args.get("by_name") else None
    for row in _inserted_rows(statement.expression):
        for number, item in enumerate(row):
            if is_star(item):
                break
            to = by_name.get(item.alias_or_name.lower()) if by_name is not None else None
            if by_name is None and number < len(columns):
                to = columns[number]
            if to is not None:
                yield id(item.unalias().unnest()), _stored(to[1], to[0])


def _inserted_rows(query: exp.Expression | None) -> Iterator[list[exp.Expression]]:
    """The items of the SELECTs and rows of VALUES that an INSERT reads."""
    if isinstance(query, exp.SetOperation):
        yield from _inserted_rows(query.left)
        yield from _inserted_rows(query.right)
    elif isinstance(query, exp.Select):
        yield list(query.expressions)
    elif isinstance(query, (exp.Subquery, exp.Paren)):
        yield from _inserted_rows(query.this)
    elif isinstance(query, exp.Values):
        for row in query.expressions:
            yield list(row.expressions) if isinstance(row, exp.Tuple) else [row]


def _stored(sql: str | None, name: str) -> Context:
    return Context(any_type=True) if sql is None else declared(sql, f"column {name}, which is {sql}")
