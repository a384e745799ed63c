"""Planning a statement: check that it binds, then plan its SELECTs from the inside out."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from llmsql.errors import CallError, QueryError
from llmsql.functions import FUNCTIONS
from llmsql.planner.calls import (
    call_text,
    has_llm_call,
    is_llm_call,
    meant_as_option,
    own_calls,
    parse_call,
    position,
    positional_arguments,
)
from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import CHANGING, attach_ctes, is_star, over_sources, visible_ctes
from llmsql.planner.creates import ask_nothing_reason
from llmsql.planner.group_calls import write_group_calls
from llmsql.planner.inference import infer_types
from llmsql.planner.plan import InPlace, Plan
from llmsql.planner.planning import IN_PLACE_PREFIX, TAG, TYPE, Planning, Switches, call_type, in_place_call, null_calls
from llmsql.planner.restating import restate
from llmsql.planner.select import plan_select
from llmsql.planner.values import query_values
from llmsql.planner.writes import Reading, read_once, reading_of, refuse_by_name

# Statements that are no queries to sqlglot, and show rows nevertheless.
SHOWING = (exp.Describe, exp.Summarize, exp.Pivot, exp.Values)


def plan_statement(
    statement: exp.Expression, catalog: Catalog, *, stage_calls: bool = True, switches: Switches | None = None
) -> Plan:
    """Plan one statement with LLM calls. The statement is rewritten in place; nothing is executed.

    Args:
        statement: parsed by sqlglot; parameters are named.
        catalog: the SQL engine's knowledge of names and types.
        stage_calls: False leaves every call in place as a UDF (the planner's off-switch).
        switches: of the single optimisations; all are on by default.

    Raises:
        CallError: a call is written wrongly; with its position.
        QueryError: the statement does not bind.
    """
    note_types(statement, catalog)
    if switches is None or switches.infer_types:
        infer_types(statement, catalog)
    write_group_calls(statement, catalog)
    nothing = ask_nothing_reason(statement, catalog)
    reading: Reading | str | None = None
    check_writing(statement, catalog)
    keep_reason = nothing or _keep_reason(statement, catalog, stage_calls)
    if stage_calls:
        query_values(statement)
    if keep_reason is None:
        reading = reading_of(statement, catalog)
    planning = Planning(
        catalog,
        keep_reason=keep_reason,
        switches=switches or Switches(),
        # What is stored outlives the session, so it uses names that the next session has, too.
        in_place_prefix=IN_PLACE_PREFIX if _is_stored(statement) else catalog.in_place_prefix,
    )
    planning.note_originals(statement)
    if isinstance(reading, Reading) or not isinstance(statement, CHANGING):
        check_binding(statement, catalog, planning)
    if planning.keep_reason is None:
        restate(statement, planning)
    for select in list(_inside_out(statement)):
        planning.ctes = visible_ctes(select)
        plan_select(select, planning)
    if isinstance(reading, Reading):
        planning.steps.append(read_once(reading))
    _leave_the_rest(statement, planning, reading if isinstance(reading, str) else None)
    final_sql = statement.sql(dialect=catalog.dialect)
    if isinstance(statement, SHOWING):
        final_sql = f"SELECT * FROM ({final_sql})"
    return Plan(
        steps=tuple(planning.steps),
        final_sql=final_sql,
        in_place=tuple(planning.in_place),
        is_query=isinstance(statement, (exp.Query, *SHOWING)),
        returns_rows=bool(statement.args.get("returning")),
    )


def note_types(statement: exp.Expression, catalog: Catalog) -> None:
    """Note at each call the type of its value, and check all that is constant in the calls.

    Raises:
        CallError: a call is written wrongly; with its position.
    """
    for node in list(statement.find_all(exp.Anonymous)):
        if is_llm_call(node):
            parsed = parse_call(node, catalog, lambda star: [exp.column("x")])
            node.meta[TYPE] = parsed.call.sql_type


def check_binding(statement: exp.Expression, catalog: Catalog, planning: Planning) -> None:
    """Let the SQL engine bind the statement's query with the calls in it, before anything runs.

    Raises:
        CallError: an argument of a call does not bind; QueryError: something else does not.
    """
    for query in _outermost_queries(statement):
        if not has_llm_call(query):
            continue
        try:
            catalog.columns(_bindable(attach_ctes(query.copy(), visible_ctes(query))))
        except QueryError as problem:
            for select in query.find_all(exp.Select):
                for node in own_calls(select):
                    _check_arguments(node, planning.originals[select.meta[TAG]], catalog)
            raise problem


def check_writing(statement: exp.Expression, catalog: Catalog) -> None:
    """Let the SQL engine bind a statement that writes: the columns it names must be there before the model is asked.

    Raises:
        QueryError: it does not bind, or cannot be planned.
    """
    if isinstance(statement, exp.Merge):
        refuse_by_name(statement)
    for cte in statement.find_all(exp.CTE):
        if isinstance(cte.this, (exp.Insert, *CHANGING)):
            raise QueryError(
                f"the CTE {cte.alias} writes, which is not available in a statement with LLM calls: "
                f"run its {cte.this.key.upper()} by itself first"
            )
    if isinstance(statement, (exp.Insert, exp.Copy, *CHANGING)):
        catalog.check(null_calls(statement))


def _outermost_queries(node: exp.Expression) -> Iterator[exp.Select | exp.SetOperation]:
    if isinstance(node, (exp.Select, exp.SetOperation)):
        yield node
        return
    for child in node.iter_expressions():
        yield from _outermost_queries(child)


def _check_arguments(node: exp.Anonymous, original: exp.Select, catalog: Catalog) -> None:
    """Raise the binding error of a call's own arguments at the call; not one of the sources, which is not its fault."""
    alone = over_sources(original, [exp.Literal.number(1)], [], visible_ctes(original))
    if not catalog.binds(alone):
        return
    arguments = [argument.unalias().copy() for argument in positional_arguments(node)]
    if any(argument.find(exp.AggFunc) for argument in arguments):  # grouping is not their own
        arguments = [column for argument in arguments for column in argument.find_all(exp.Column)] or [exp.null()]
    alone.set("expressions", arguments)
    try:
        catalog.columns(null_calls(alone))
    except QueryError as problem:
        line, column = position(node)
        text = f"{node.name.lower()}: {problem}{meant_as_option(node)}"
        raise CallError(text, line=line, column=column) from problem


def _bindable(bindable: exp.Query) -> exp.Query:
    """The query with its calls as the SQL engine can bind them: without options, and what only our functions take."""
    for node in reversed(list(bindable.find_all(exp.Anonymous))):  # inner calls come later
        if node.name.lower() not in FUNCTIONS:
            continue
        arguments = [argument.unalias() for argument in positional_arguments(node) if not is_star(argument)]
        node.set("expressions", arguments)
        if call_type(node) != FUNCTIONS[node.name.lower()].sql_type:
            node.replace(exp.cast(node.copy(), call_type(node), dialect="duckdb"))
    return bindable


def _inside_out(node: exp.Expression) -> Iterator[exp.Select]:
    with_ = node.args.get("with_")
    children = ([with_] if with_ is not None else []) + [c for c in node.iter_expressions() if c is not with_]
    for child in children:
        yield from _inside_out(child)
    if isinstance(node, exp.Select):
        yield node


def _is_stored(statement: exp.Expression) -> bool:
    return isinstance(statement, exp.Create) and statement.kind != "TABLE"


def _keep_reason(statement: exp.Expression, catalog: Catalog, stage_calls: bool) -> str | None:
    if isinstance(statement, exp.Describe):
        return "DESCRIBE asks nothing"
    if isinstance(statement, CHANGING) and not catalog.has_row_numbers:
        return _by_engine(statement)
    if _is_stored(statement):
        return f"a {statement.kind.lower()} is computed when it is used"
    return None if stage_calls else "staging is switched off (plan=False)"


def _leave_the_rest(statement: exp.Expression, planning: Planning, reason: str | None) -> None:
    """Calls outside of any SELECT that no reading took: RETURNING, ON CONFLICT, ORDER BY of a set operation."""

    def no_star(star: exp.Expression) -> list[exp.Column]:
        raise CallError("a star is no field here; name the columns")

    while rest := [node for node in statement.find_all(exp.Anonymous) if is_llm_call(node)]:
        node = rest[-1]
        parsed = parse_call(node, planning.catalog, no_star)
        text = call_text(node, planning.catalog.dialect)
        planning.in_place.append(
            InPlace(text, planning.keep_reason or _rest_reason(node) or reason or _by_engine(statement))
        )
        node.replace(in_place_call(parsed, planning.in_place_prefix))


def _by_engine(statement: exp.Expression) -> str:
    return f"{statement.key.upper()} is run by the SQL engine itself"


def _rest_reason(node: exp.Expression) -> str | None:
    if node.find_ancestor(exp.Returning) is not None:
        return "RETURNING is computed as the rows are written"
    if node.find_ancestor(exp.OnConflict) is not None:
        return "ON CONFLICT is computed as the rows are written"
    when = node.find_ancestor(exp.When)
    if when is not None and when.args.get("source"):
        return "WHEN NOT MATCHED BY SOURCE sees rows that the source does not have"
    return None
