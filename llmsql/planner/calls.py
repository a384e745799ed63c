"""LLM calls in a parsed statement: finding them, and taking them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from llmsql.errors import CallError, QueryError
from llmsql.functions import FUNCTIONS, Call, Function, check_option_names, make_call
from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import is_star
from llmsql.prompt import parse_template, placeholders

POSITION = "llmsql_position"
AGGREGATE = "llm_agg"


@dataclass(frozen=True)
class ParsedCall:
    """A call taken apart. `prompt` is its expression when it is not constant; `fields` are (name, expression)."""

    call: Call
    prompt: exp.Expression | None
    fields: tuple[tuple[str, exp.Expression], ...]

    @property
    def arguments(self) -> tuple[exp.Expression, ...]:
        """The expressions that differ from row to row, prompt first."""
        expressions = tuple(expression for _, expression in self.fields)
        return expressions if self.prompt is None else (self.prompt, *expressions)


def is_llm_call(node: exp.Expression) -> bool:
    """Whether the node calls one of our functions."""
    return isinstance(node, exp.Anonymous) and node.name.lower() in FUNCTIONS


def has_llm_call(node: exp.Expression) -> bool:
    """Whether an LLM call stands anywhere in the node."""
    return any(is_llm_call(found) for found in node.find_all(exp.Anonymous))


def own_calls(select: exp.Select) -> list[exp.Anonymous]:
    """The calls of this SELECT itself, not of queries inside it; inner calls before those that contain them."""
    return [node for node in _post_order(select) if is_llm_call(node)]


def calls_in(node: exp.Expression) -> list[exp.Anonymous]:
    """The calls in an expression of a SELECT, inner first; queries nested in it are not entered."""
    return [found for found in _post_order(node) if is_llm_call(found)]


def position(node: exp.Expression) -> tuple[int | None, int | None]:
    """Line and column (1-based) of a call in the statement as the user wrote it; see `llmsql.planner.parsing`."""
    line, column = node.meta.get(POSITION, (None, None))
    return line, column


def call_text(node: exp.Expression, dialect: str) -> str:
    """An expression with calls as SQL, the calls' names in lower case as users write them."""
    text: str = node.sql(dialect=dialect)
    for found in node.find_all(exp.Anonymous):
        if is_llm_call(found):
            text = text.replace(f"{found.name.upper()}(", f"{found.name.lower()}(")
    return text.replace(f"{AGGREGATE}(distinct_rows := TRUE, ", f"{AGGREGATE}(DISTINCT ").replace(
        ",  ORDER BY", " ORDER BY"
    )


def parse_call(node: exp.Anonymous, catalog: Catalog, star: Callable[[exp.Expression], list[exp.Column]]) -> ParsedCall:
    """Take a call apart and check all that is constant in it.

    Args:
        node: the call.
        catalog: computes constant arguments.
        star: the columns that `*` or `t.*` stands for.

    Raises:
        CallError: with the call's position, for anything that is wrong in the call.
    """
    line, column = position(node)
    try:
        return _parse_call(node, catalog, star)
    except CallError as problem:
        if problem.line is not None:
            raise
        raise CallError(str(problem), line=line, column=column) from None
    except QueryError as problem:
        raise CallError(f"{node.name.lower()}: {problem}", line=line, column=column) from problem


def _parse_call(
    node: exp.Anonymous, catalog: Catalog, star: Callable[[exp.Expression], list[exp.Column]]
) -> ParsedCall:
    name = node.name.lower()
    function = FUNCTIONS[name]
    positional = positional_arguments(node)
    if name == AGGREGATE:
        positional = [argument for argument in positional if not isinstance(argument, exp.Order)]
    elif any(isinstance(argument, (exp.Order, exp.Distinct)) for argument in positional):
        raise CallError(
            f"{name} is asked about each row, so DISTINCT and ORDER BY have no place in it; llm_agg has them"
        )
    options = _options(node, function, catalog)
    if len(positional) < function.leading:
        wanted = "a prompt" if function.second is None else f"a prompt and {function.second}"
        raise CallError(f"{name} needs {wanted}: {function.usage}")
    prompt, prompt_expression = _prompt(positional[0], name, catalog)
    second = None
    if function.second is not None:
        second = _constant(positional[1], f"{name}: the {function.second_name}", catalog)
    fields = _fields(positional[function.leading :], catalog.dialect, star)
    if not fields:
        raise CallError(f"{name} has no field to ask about: {function.usage}")
    call = make_call(name, prompt, second, options)
    if prompt is not None and name != AGGREGATE:
        parse_template(prompt, [field for field, _ in fields])
    return ParsedCall(call, prompt_expression, fields)


def place_arguments(node: exp.Anonymous) -> None:
    """Write a call as all others are, in place: labels or a schema given by name stand behind the prompt, and without
    fields the `{placeholders}` of a literal prompt name columns.

    >>> import sqlglot
    >>> call = sqlglot.parse_one("llm_classify('Is {body} old?', labels => ['a'])", dialect="duckdb")
    >>> place_arguments(call)
    >>> print(call.sql(dialect="duckdb"))
    LLM_CLASSIFY('Is {body} old?', ['a'], "body")
    """
    function = FUNCTIONS[node.name.lower()]
    named = [argument for argument in node.expressions if is_option(argument)]
    positional = positional_arguments(node)
    if function.second is not None:
        name = function.second_name
        second = next((argument for argument in named if argument.this.name.lower() == name), None)
        if second is not None and not (len(positional) > 1 and is_constant(positional[1])):  # else it is given twice
            named = [argument for argument in named if argument is not second]
            positional.insert(1, second.expression)
    prompt = positional[0] if len(positional) == function.leading else None
    if isinstance(prompt, exp.Literal) and prompt.is_string and function.name != AGGREGATE:
        positional += [exp.column(field, quoted=True) for field in placeholders(prompt.name)]
    node.set("expressions", [*positional, *named])


def is_option(argument: exp.Expression) -> bool:
    """Whether an argument of a call is an option: `name := value` or `name => value`."""
    return isinstance(argument, (exp.PropertyEQ, exp.Kwarg))


def meant_as_option(node: exp.Anonymous) -> str:
    """What to say of a call whose arguments do not bind, where one looks like an option: `max_tokens = 3`; else ""."""
    function = FUNCTIONS[node.name.lower()]
    for argument in positional_arguments(node):
        if isinstance(argument, exp.EQ) and isinstance(argument.this, exp.Column) and not argument.this.table:
            name = argument.this.name.lower()
            if name in (*function.options, function.second_name):
                return f" (if {name} is meant as an option, write {name} => ...)"
    return ""


def positional_arguments(node: exp.Anonymous) -> list[exp.Expression]:
    """The arguments of a call that are no options: the prompt, what else the function has, the fields."""
    return [argument for argument in node.expressions if not is_option(argument)]


def _options(node: exp.Anonymous, function: Function, catalog: Catalog) -> dict[str, Any]:
    given = [argument for argument in node.expressions if is_option(argument)]
    names = [argument.this.name.lower() for argument in given]
    check_option_names(function, names)  # a name that is wrong says more than what follows from it
    options: dict[str, Any] = {}
    for name, argument in zip(names, given):
        if name in options or name == function.second_name:
            raise CallError(f"{function.name}: option {name!r} is given twice")
        options[name] = _constant(argument.expression, f"{function.name}: option {name!r}", catalog)
    return options


def _constant(expression: exp.Expression, what: str, catalog: Catalog) -> Any:
    if not is_constant(expression):
        raise CallError(f"{what} must be constant, not {expression.sql(dialect=catalog.dialect)}")
    value = catalog.constant(expression)
    return float(value) if type(value).__name__ == "Decimal" else value


def is_constant(expression: exp.Expression) -> bool:
    """Whether the expression has the same value for every row: no column, no query, no LLM call in it."""
    return expression.find(exp.Column, exp.Query, exp.Star, exp.Columns) is None and not has_llm_call(expression)


def _prompt(argument: exp.Expression, function: str, catalog: Catalog) -> tuple[str | None, exp.Expression | None]:
    if not is_constant(argument):
        return None, argument
    prompt = _constant(argument, f"{function}: the prompt", catalog)
    if not isinstance(prompt, str) or not prompt.strip():
        raise CallError(f"{function}: the prompt must be a text that is not empty, not {prompt!r}")
    return prompt, None


def _fields(
    arguments: list[exp.Expression], dialect: str, star: Callable[[exp.Expression], list[exp.Column]]
) -> tuple[tuple[str, exp.Expression], ...]:
    named: list[tuple[str, exp.Expression]] = []
    for argument in arguments:
        if is_star(argument):
            named += [(column.name, column) for column in star(argument)]
        elif isinstance(argument, exp.Alias):
            named.append((argument.alias, argument.this))
        elif isinstance(argument, exp.Subquery) and argument.alias:  # sqlglot's own way to name a query
            alone = argument.copy()
            alone.set("alias", None)
            named.append((argument.alias, alone))
        elif isinstance(argument, exp.Struct) and all(isinstance(e, exp.PropertyEQ) for e in argument.expressions):
            named += [(item.this.name, item.expression) for item in argument.expressions]
        elif isinstance(argument, (exp.Column, exp.Dot)):
            named.append((argument.name, argument))
        elif is_llm_call(argument):
            named.append((argument.name.lower(), argument))
        else:
            named.append((argument.sql(dialect=dialect), argument))
    return tuple(zip(unique_names([name for name, _ in named]), [expression for _, expression in named]))


def unique_names(names: list[str]) -> list[str]:
    """The names with `_1`, `_2`, ... after those that came before, without regard to case, as DuckDB does.

    >>> unique_names(["id", "title", "ID"])
    ['id', 'title', 'ID_1']
    """
    taken: set[str] = set()
    result = []
    for name in names:
        unique, number = name, 0
        while unique.lower() in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.lower())
        result.append(unique)
    return result


def _post_order(node: exp.Expression) -> Iterator[exp.Expression]:
    for child in node.iter_expressions():
        if not isinstance(child, exp.Query):
            yield from _post_order(child)
    yield node
