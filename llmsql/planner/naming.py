"""Writing a SELECT's calls out: names for results and fields, aliases and stars taken apart."""

from __future__ import annotations

from sqlglot import exp

from llmsql.functions import FUNCTIONS
from llmsql.planner.calls import call_text, calls_in, is_option
from llmsql.planner.clauses import is_above
from llmsql.planner.planning import CORRELATED, TEXT
from llmsql.planner.scope import Scope


def name_calls(scope: Scope) -> None:
    """Name the result columns and the fields of every call, and check the calls on the way.

    Raises:
        CallError: a call is written wrongly.
    """
    name_outputs(scope.select, scope.catalog.dialect)
    for node in scope.calls():
        node.meta.setdefault(TEXT, call_text(node, scope.catalog.dialect))
    _expand_aliases(scope)
    for node in scope.calls():
        _name_arguments(scope, node)


def name_outputs(select: exp.Select, dialect: str) -> None:
    """Give a result column that holds a call the call's text as its name, as DuckDB would."""
    for item in select.expressions:
        if not isinstance(item, exp.Alias) and calls_in(item):
            named = exp.Alias(alias=exp.to_identifier(call_text(item, dialect), quoted=True))
            item.replace(named)
            named.set("this", item)  # not a copy: who looks at a call in it keeps it


def _expand_aliases(scope: Scope) -> None:
    """Put the expression for each alias of the SELECT list that WHERE or a call's argument uses."""
    aliases = {item.alias.lower(): item for item in scope.select.expressions if isinstance(item, exp.Alias)}
    for _ in range(len(aliases)):
        roots: list[exp.Expression] = list(scope.calls())
        if scope.select.args.get("where"):
            roots.append(scope.select.args["where"])
        used = [
            column
            for root in roots
            for column in root.find_all(exp.Column)
            if not column.table and column.name.lower() in aliases and column.parent_select is scope.select
        ]
        used = [column for column in used if column.name.lower() not in scope.source_columns()]
        if not used:
            return
        for column in used:
            alias = aliases[column.name.lower()]
            if not is_above(alias, column):
                column.replace(exp.paren(alias.this.copy()))


def _name_arguments(scope: Scope, node: exp.Anonymous) -> None:
    """Write each field of a call with its name, stars and structs taken apart; checks the call on the way."""
    parsed = scope.parse(node)
    node.meta[CORRELATED] = not scope.arguments_bind(parsed)
    leading = node.expressions[: FUNCTIONS[parsed.call.function].leading]
    options = [argument for argument in node.expressions if is_option(argument)]
    fields = [exp.alias_(expression, name, quoted=True) for name, expression in parsed.fields]
    node.set("expressions", [*leading, *fields, *options])
