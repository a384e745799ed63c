"""CREATE TABLE AS: where no row will be kept, nothing is asked."""

from __future__ import annotations

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.planner.catalog import Catalog


def ask_nothing_reason(statement: exp.Expression, catalog: Catalog) -> str | None:
    """Why the query of a CREATE TABLE need not run, if so; WITH NO DATA is written as LIMIT 0.

    Raises:
        QueryError: there is a table of that name already.
    """
    if not isinstance(statement, exp.Create) or statement.kind != "TABLE" or not isinstance(statement.this, exp.Table):
        return None
    properties = statement.args.get("properties")
    temporary = properties is not None and properties.find(exp.TemporaryProperty) is not None
    if not statement.args.get("replace") and catalog.has_table(statement.this, temporary=temporary):
        if not statement.args.get("exists"):
            raise QueryError(f'Table with name "{statement.this.name}" already exists!')
        return "the table exists already, and stays as it is"
    data = properties.find(exp.WithDataProperty) if properties is not None else None
    if data is None:
        return None
    data.pop()
    if not data.args.get("no"):
        return None
    query = statement.expression
    statement.set("expression", exp.select("*").from_(query.copy().subquery("llmsql_data")).limit(0))
    return "WITH NO DATA keeps no row"
