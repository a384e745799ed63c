"""Which parts of a statement would not come out the same when computed twice.

A stage reads its input before the final statement reads the same sources again, so what is unstable is computed once.
"""

from __future__ import annotations

from sqlglot import exp

from llmsql.planner.catalog import Catalog

UNSTABLE_NODES: tuple[tuple[type[exp.Expression], str], ...] = (
    (exp.Limit, "LIMIT may choose other rows each time"),
    (exp.Fetch, "FETCH may choose other rows each time"),
    (exp.TableSample, "a sample chooses other rows each time"),
    (exp.AggFunc, "an aggregate need not be equal to the last bit each time"),
    (exp.Window, "a window function may number equal rows otherwise each time"),
)


def instability(source: exp.Expression, catalog: Catalog, ctes: list[exp.CTE]) -> str | None:
    """Why an item of FROM may differ when it is read twice, or None when it will not."""
    for kind, reason in UNSTABLE_NODES:
        if source.find(kind) is not None:
            return reason
    if any(distinct.args.get("on") for distinct in source.find_all(exp.Distinct)):
        return "DISTINCT ON may choose other rows each time"
    if any(catalog.is_aggregate(function.name) for function in source.find_all(exp.Anonymous)):
        return "an aggregate need not be equal to the last bit each time"
    name = volatile_function(source, catalog)
    if name is not None:
        return f"{name}() answers anew each time"
    by_name = {cte.alias.lower(): cte for cte in ctes}
    for table in source.find_all(exp.Table):
        if table.args.get("sample"):
            return "a sample chooses other rows each time"
        if catalog.reads_once(table):
            return "the stream can be read only once"
        cte = by_name.get(table.name.lower()) if not table.db else None
        definition = cte.this if cte is not None else catalog.view(table)
        visible = [other for other in ctes if other is not cte] if cte is not None else []
        inner = instability(definition, catalog, visible) if definition is not None else None
        if inner is not None:
            return inner
    return None


def volatile_function(expression: exp.Expression, catalog: Catalog) -> str | None:
    """The name of a volatile function in the expression, or None."""
    for function in expression.find_all(exp.Func):
        names = [function.name] if isinstance(function, exp.Anonymous) else function.sql_names()
        for name in names:
            if isinstance(function, (exp.Rand, exp.Uuid)) or catalog.is_volatile(name):
                return str(name).lower()
    return None
