"""From SQL text to a tree whose parameters are named and whose calls know where they stand in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import TokenType

from llmsql.errors import QueryError
from llmsql.planner.calls import AGGREGATE, POSITION, is_llm_call, place_arguments

MENTIONS_CALL = re.compile(r"\bllm(_\w+)?\s*\(", re.IGNORECASE)
ERRORS_FUNCTION = "llm_errors"
PARAMETER = "llmsql_parameter_"
PARAMETER_SIGN = {"spark": ":"}


def mentions_llm_call(sql: str) -> bool:
    """Whether the text may hold an LLM call; false means that it certainly holds none."""
    return MENTIONS_CALL.search(sql) is not None


def name_errors_table(sql: str, dialect: str, name: str) -> str:
    """The text with the table function `llm_errors()` replaced by a table called `name`.

    >>> name_errors_table("SELECT call FROM llm_errors() AS e", "duckdb", "errors_of_last")
    'SELECT call FROM errors_of_last AS e'
    """
    pieces, last = [], 0
    tokens = _tokens(sql, dialect)
    for first, opening, closing in zip(tokens, tokens[1:], tokens[2:]):
        if first.text.lower() == ERRORS_FUNCTION and (opening.text, closing.text) == ("(", ")"):
            pieces += [sql[last : first.start], name]
            last = closing.end + 1
    return "".join([*pieces, sql[last:]])


def split_statements(sql: str, dialect: str) -> list[str]:
    """The statements of a text, cut at its semicolons; those in texts and comments do not count.

    Raises:
        QueryError: the text cannot be cut into tokens.

    >>> split_statements("SELECT ';'; SELECT 2 -- ;", "duckdb")
    ["SELECT ';'", ' SELECT 2 -- ;']
    """
    ends = [token.start for token in _tokens(sql, dialect) if token.token_type == TokenType.SEMICOLON]
    texts = [sql[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(sql)])]
    return [text for text in texts if text.strip()]


def query_start(sql: str, dialect: str) -> int | None:
    """Where the first query of a text begins; None where it has none.

    Raises:
        QueryError: the text cannot be cut into tokens.
    """
    first = (TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.VALUES)
    return next((token.start for token in _tokens(sql, dialect) if token.token_type in first), None)


def parse_statement(sql: str, dialect: str) -> exp.Expression:
    """Parse one statement; positional parameters become named ones, see `name_parameters`.

    ORDER BY becomes an argument of its own in llm_agg, and DISTINCT an option.

    Raises:
        QueryError: the text does not parse; the message says where.
    """
    named, shifts = _written_for_sqlglot(sql, dialect)
    try:
        trees = [tree for tree in sqlglot.parse(named, dialect=dialect) if tree is not None]
    except SqlglotError as problem:
        raise QueryError(f"the statement does not parse: {_first_line(problem)}") from problem
    if len(trees) != 1:
        raise QueryError(f"expected one statement, found {len(trees)}")
    if isinstance(trees[0], exp.Command):
        raise QueryError(
            f"{trees[0].name.upper()} of a statement with LLM calls is not available: run the statement itself, "
            "with parameters if need be (con.execute(sql, [...]))"
        )
    for node in trees[0].find_all(exp.Placeholder):
        if str(node.this).isdigit():
            node.set("this", f"{PARAMETER}{node.this}")
    for node in list(trees[0].find_all(exp.Column)):
        if _is_default(node):  # sqlglot takes the keyword for a column
            node.replace(exp.Var(this="DEFAULT"))
    for node in list(trees[0].find_all(exp.Anonymous)):
        if is_llm_call(node) and "start" in node.meta:
            start = node.meta["start"] - sum(longer for at, longer in shifts if at < node.meta["start"])
            node.meta[POSITION] = (sql.count("\n", 0, start) + 1, start - sql.rfind("\n", 0, start))
        if is_llm_call(node):
            place_arguments(node)
    return trees[0]


def name_parameters(parameters: Sequence[Any] | Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameter values by the names that `parse_statement` gave them."""
    if parameters is None:
        return {}
    if isinstance(parameters, Mapping):
        return {str(name): value for name, value in parameters.items()}
    return {f"{PARAMETER}{number}": value for number, value in enumerate(parameters, start=1)}


def parameters_of(tree: exp.Expression, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that stand in `tree`; the SQL engine refuses any that do not."""
    names = {str(node.this) for node in tree.find_all(exp.Placeholder)}
    return {name: value for name, value in values.items() if name in names}


def _written_for_sqlglot(sql: str, dialect: str) -> tuple[str, list[tuple[int, int]]]:
    """The text as sqlglot can parse it, and (position in the new text, characters added) for each change.

    `?` is named in order. In llm_agg, `x AS name ORDER BY y` becomes `x AS name, ORDER BY y`.
    """
    pieces: list[str] = []
    shifts: list[tuple[int, int]] = []
    parameters = added = last = 0
    inside = [False]  # for each open parenthesis, whether it is that of llm_agg
    tokens = _tokens(sql, dialect)
    for before, token in zip([None, *tokens], tokens):
        start, end, text = token.start, token.end + 1, None
        if token.token_type == TokenType.L_PAREN:
            inside.append(before is not None and before.text.lower() == AGGREGATE)
        elif token.token_type == TokenType.R_PAREN:
            inside = inside[:-1] or [False]
        elif token.token_type == TokenType.PLACEHOLDER and token.text == "?":
            parameters += 1
            text = f"{PARAMETER_SIGN.get(dialect, '$')}{PARAMETER}{parameters}"
        elif inside[-1] and token.token_type == TokenType.DISTINCT and before.token_type == TokenType.L_PAREN:
            text = "distinct_rows := true, "
        elif inside[-1] and token.token_type == TokenType.ORDER_BY and before.token_type != TokenType.COMMA:
            text, end = ", ", start
        if text is None:
            continue
        pieces += [sql[last:start], text]
        longer = len(text) - (end - start)
        shifts.append((start + added, longer))
        added += longer
        last = end
    return "".join([*pieces, sql[last:]]), shifts


def _is_default(column: exp.Column) -> bool:
    """Whether `DEFAULT` stands as a value of SET or of MERGE's VALUES."""
    if column.table or column.this.args.get("quoted") or column.name.lower() != "default":
        return False
    outer = column.parent
    if isinstance(outer, exp.EQ):
        return column.arg_key == "expression" and isinstance(outer.parent, exp.Update)
    if isinstance(outer, exp.Tuple) and isinstance(outer.parent, exp.EQ):
        return outer.arg_key == "expression" and isinstance(outer.parent.parent, exp.Update)
    return isinstance(outer, exp.Tuple) and outer.arg_key == "expression" and isinstance(outer.parent, exp.Insert)


def _tokens(sql: str, dialect: str) -> list[Any]:
    try:
        return list(sqlglot.tokenize(sql, dialect=dialect))
    except SqlglotError as problem:
        raise QueryError(f"the statement does not parse: {_first_line(problem)}") from problem


def _first_line(problem: Exception) -> str:
    return re.sub(r"\x1b\[\d*m", "", str(problem)).strip().splitlines()[0]
