"""PREPARE, EXECUTE and DEALLOCATE of statements with LLM calls: kept as text, and planned when they are executed."""

from __future__ import annotations

import re

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import PARAMETER, mentions_llm_call, parse_statement

NAME = r"\s+(\"(?:[^\"]|\"\")+\"|\w+)\s*"
PREPARE = re.compile(rf"\s*PREPARE{NAME}(?:\([^)]*\)\s*)?\bAS\b(.*)", re.IGNORECASE | re.DOTALL)
EXECUTE = re.compile(rf"\s*EXECUTE{NAME}(\(.*\))?\s*", re.IGNORECASE | re.DOTALL)
DEALLOCATE = re.compile(rf"\s*DEALLOCATE(?:\s+PREPARE)?{NAME}", re.IGNORECASE)


class PreparedStatements:
    """The prepared statements of one session that hold LLM calls, by name; all others are DuckDB's."""

    def __init__(self) -> None:
        self._statements: dict[str, str] = {}

    def may_concern(self, text: str) -> bool:
        """Whether the text may execute, replace or drop a statement that is kept here."""
        return any(name in text.lower() for name in self._statements)

    def kept(self, text: str) -> bool:
        """Keep or drop the statement that the text prepares or deallocates; whether DuckDB need not see the text.

        Raises:
            QueryError: the statement does not parse.
        """
        if (found := PREPARE.fullmatch(text)) is not None:
            name, statement = _name(found.group(1)), found.group(2)
            self._statements.pop(name, None)
            if not mentions_llm_call(statement) or not has_llm_call(parse_statement(statement, "duckdb")):
                return False
            self._statements[name] = statement
            return True
        found = DEALLOCATE.fullmatch(text)
        return found is not None and self._statements.pop(_name(found.group(1)), None) is not None

    def executed(self, text: str) -> exp.Expression | None:
        """The statement that the text executes, with the values in it; None where it executes none that is kept here.

        Raises:
            QueryError: a value is missing, or there is one too many.
        """
        found = EXECUTE.fullmatch(text)
        if found is None or _name(found.group(1)) not in self._statements:
            return None
        name = _name(found.group(1))
        tree = parse_statement(self._statements[name], "duckdb")
        values = _values(found.group(2))
        wanted = {str(node.this) for node in tree.find_all(exp.Placeholder)}
        if wanted != set(values):
            raise QueryError(
                f"EXECUTE {name}: the prepared statement takes {_shown(wanted)} and is given {_shown(set(values))}"
            )
        for node in list(tree.find_all(exp.Placeholder)):
            node.replace(exp.paren(values[str(node.this)].copy()))
        return tree


def _values(arguments: str | None) -> dict[str, exp.Expression]:
    """The expressions of EXECUTE by the names of their parameters: `(5, 'x')` or `(top := 5)`."""
    if arguments is None:
        return {}
    call = parse_statement(f"SELECT llmsql_execute{arguments}", "duckdb").find(exp.Anonymous)
    given: dict[str, exp.Expression] = {}
    for number, value in enumerate(call.expressions if call is not None else [], start=1):
        named = isinstance(value, (exp.PropertyEQ, exp.Kwarg))
        given[value.this.name if named else f"{PARAMETER}{number}"] = value.expression if named else value
    return given


def _name(written: str) -> str:
    return written.strip('"').replace('""', '"').lower()


def _shown(names: set[str]) -> str:
    return ", ".join(sorted(f"${name.removeprefix(PARAMETER)}" for name in names)) or "no value"
