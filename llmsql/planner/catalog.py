"""What the planner asks the SQL engine while it plans. Nothing here runs a model or reads a whole table."""

from __future__ import annotations

from typing import Any, Protocol

from sqlglot import exp

from llmsql.planner.hazards import IsText


def literal_value(expression: exp.Expression) -> str | bool | int | None:
    """The value of a text, a whole number or a boolean as it is written; None for any other expression."""
    if isinstance(expression, exp.Boolean) or (isinstance(expression, exp.Literal) and expression.is_string):
        value: str | bool = expression.this
        return value
    if isinstance(expression, exp.Literal) and expression.this.isdecimal():
        return int(expression.this)
    return None


class Catalog(Protocol):
    """The SQL engine's knowledge of names and types."""

    dialect: str
    in_place_prefix: str  # of the functions that run calls left in place, for this session alone
    has_row_numbers: bool  # by which a statement finds the rows again that another one read

    def columns(self, query: exp.Query) -> list[tuple[str, str]]:
        """(name, type) of each column of the query's result.

        Raises:
            QueryError: the query does not bind.
        """
        ...

    def check(self, statement: exp.Expression) -> None:
        """Bind a statement that writes, without running it.

        Raises:
            QueryError: it does not bind.
        """
        ...

    def has_table(self, table: exp.Table, *, temporary: bool) -> bool:
        """Whether a table or view is where `CREATE TABLE` would make this one."""
        ...

    def binds(self, query: exp.Query) -> bool:
        """Whether the query binds; also False where a failed attempt would do harm, and so cannot be made."""
        ...

    def constant(self, expression: exp.Expression) -> Any:
        """The Python value of an expression without columns.

        Raises:
            QueryError: it cannot be computed.
        """
        ...

    def attempt(self, expression: exp.Expression, is_text: IsText, *, wholly: bool = True) -> exp.Expression | None:
        """The expression, NULL where evaluating it raises; None where the SQL engine has no way to say so.

        `wholly=False` lets parts raise for which it has none.
        """
        ...

    def is_volatile(self, function: str) -> bool:
        """Whether the function may answer differently for equal arguments (random, nextval, ...)."""
        ...

    def is_aggregate(self, function: str) -> bool:
        """Whether the function is an aggregate."""
        ...

    def view(self, table: exp.Table) -> exp.Query | None:
        """The definition of a view, or None when the table is not a view."""
        ...

    def reads_once(self, table: exp.Table) -> bool:
        """Whether the table is a stream that is gone after it was read."""
        ...

    def has_collations(self) -> bool:
        """Whether a comparison of texts may have a collation, so that it does not tell all texts apart."""
        ...
