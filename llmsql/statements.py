"""The statements of a text: which hold LLM calls, and what else must be known before one is planned."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlglot import exp

from llmsql.planner.calls import has_llm_call
from llmsql.planner.parsing import (
    ERRORS_FUNCTION,
    mentions_llm_call,
    name_errors_table,
    parse_statement,
    split_statements,
)
from llmsql.prepared import PreparedStatements

ERRORS_TABLE = "__llmsql_errors"  # what llm_errors() reads
EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\s+|\(\s*(?:ANALYZE|FORMAT)\b[^()]*\)\s*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """One statement; without a `tree` it is for DuckDB as it is.

    tree: the statement parsed, without EXPLAIN, if it holds LLM calls. explain: what stands behind EXPLAIN, such as
    ANALYZE, or None.
    """

    text: str
    tree: exp.Expression | None = None
    explain: str | None = None

    @property
    def runs(self) -> bool:
        """Whether its calls are asked, as those of EXPLAIN alone are not."""
        return self.explain is None or "analyze" in self.explain.lower()


class Statements:
    """Takes the texts of one session apart, which knows its prepared statements."""

    def __init__(self) -> None:
        self._prepared = PreparedStatements()

    def of(self, text: str) -> list[Statement]:
        """The statements of a text; a text without LLM calls is one statement.

        Raises:
            QueryError: a statement with LLM calls does not parse.
        """
        if not mentions_llm_call(text) and not self._prepared.may_concern(text):
            return [Statement(text)]
        if ERRORS_FUNCTION in text.lower():
            text = name_errors_table(text, "duckdb", ERRORS_TABLE)
        found: list[Statement] = []
        changed = False  # a prepared statement was kept or dropped, of which DuckDB knows nothing
        for one in split_statements(text, "duckdb"):
            if self._prepared.kept(one):
                changed = True
            else:
                found.append(self._parsed(one))
        return found if changed or any(one.tree is not None for one in found) else [Statement(text)]

    def _parsed(self, text: str) -> Statement:
        explained = EXPLAIN.match(text)
        asked = text[explained.end() :] if explained else text
        tree = self._prepared.executed(asked)
        if tree is None and mentions_llm_call(text):
            tree = parse_statement(asked, "duckdb")
        if tree is None or not has_llm_call(tree):
            return Statement(text)
        return Statement(text, tree, (explained.group(1) or "") if explained else None)
