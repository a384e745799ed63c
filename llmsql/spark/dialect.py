"""The planner's trees and texts as Spark takes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import sqlglot
from sqlglot import ErrorLevel, Generator, exp
from sqlglot.dialects.spark import Spark
from sqlglot.transforms import any_to_exists, eliminate_qualify, preprocess, unnest_to_explode

from llmsql.errors import CallError
from llmsql.planner.calls import has_llm_call
from llmsql.planner.planning import IN_PLACE_PREFIX
from llmsql.spark.comparing import compare_entries
from llmsql.spark.distinct_on import numbered
from llmsql.spark.requirements import QUALIFY, pyspark_version
from llmsql.spark.user_functions import describe_fields

# Functions that the planner writes, by Spark's names of them.
WORDS = {"list_contains": "array_contains", "row": "struct"}
DIALECT = "plannedspark"  # by which sqlglot knows the class below


def _select_sql(generator: Generator, select: exp.Select) -> str:
    rules = [numbered, unnest_to_explode, any_to_exists]
    # Spark's own finds no aggregates. Without it names of tables in it are lost, and LIMIT comes before it.
    if pyspark_version() < QUALIFY or select.args.get("group") is not None:
        rules.insert(0, eliminate_qualify)
    return str(preprocess(rules)(generator, select))


class PlannedSpark(Spark):  # type: ignore[misc]
    """Spark's dialect with QUALIFY, where this Spark has it."""

    class Generator(Spark.Generator):  # type: ignore[misc]
        """Writes it."""

        TRANSFORMS: ClassVar = {**Spark.Generator.TRANSFORMS, exp.Select: _select_sql}


def spark_sql(planned: str | exp.Expression, maps: Collection[str] = ()) -> str:
    """A statement that the planner wrote in its Spark dialect, without the types and functions that Spark lacks.

    The columns called `maps` hold maps.

    >>> spark_sql(exp.select(exp.cast(exp.null(), "JSON")))
    'SELECT CAST(NULL AS STRING)'
    """
    tree = sqlglot.parse_one(planned, dialect=DIALECT) if isinstance(planned, str) else planned
    return str(tree.transform(_for_spark, maps).sql(dialect=DIALECT, unsupported_level=ErrorLevel.IGNORE))


def _for_spark(node: exp.Expression, maps: Collection[str]) -> exp.Expression:
    if isinstance(node, exp.NullSafeEQ):
        return compare_entries(node, maps)
    if isinstance(node, exp.Cast) and node.to.is_type(exp.DataType.Type.JSON, exp.DataType.Type.ENUM):
        return type(node)(this=node.this, to=exp.DataType.build("TEXT"))
    if isinstance(node, exp.CTE) and node.args.get("materialized") is not None:
        node.set("materialized", None)  # what must be computed once is a step of its own
    if isinstance(node, exp.ParseJSON):
        return exp.cast(node.this, "TEXT")
    if isinstance(node, exp.Join) and _is_function_of_rows(node.this):
        node.set("this", exp.Lateral(this=node.this.this, alias=node.this.args.get("alias")))
    if isinstance(node, exp.Anonymous) and node.name.lower() in WORDS:
        node.set("this", WORDS[node.name.lower()])
    if isinstance(node, exp.Anonymous) and str(node.this).startswith(IN_PLACE_PREFIX):
        describe_fields(node)
    return node


def _is_function_of_rows(source: exp.Expression) -> bool:
    """Whether an item of FROM is such as `explode(t.items)`, which needs the rows of another."""
    is_function = isinstance(source, exp.Table) and isinstance(source.this, exp.Func)
    return is_function and source.find(exp.Column) is not None


def as_planned(tree: exp.Expression) -> exp.Expression:
    """A statement that was parsed in Spark's dialect, in the planner's words; in place where it can be.

    sqlglot takes CAST for one that gives NULL, as it does without ANSI mode; TRY_CAST stays. Rows of VALUES with calls
    become SELECTs, since Spark takes neither functions nor subqueries there.
    """
    join_lateral_views(tree)
    for values in list(tree.find_all(exp.Values)):
        if has_llm_call(values) and all(isinstance(row, exp.Tuple) for row in values.expressions):
            rows = _selected(values)
            if values is tree:
                tree = rows
            elif isinstance(values.parent, exp.Insert):
                values.replace(rows)
            else:
                alias = exp.TableAlias(this=values.args["alias"].this) if values.args.get("alias") else None
                values.replace(exp.Subquery(this=rows, alias=alias))
    for member in tree.find_all(exp.PropertyEQ):
        if isinstance(member.parent, exp.Struct) and isinstance(member.this, exp.Identifier):
            member.this.set("quoted", True)  # a text in named_struct, where any is a name
    for cast in list(tree.find_all(exp.TryCast)):
        if not cast.args.get("safe"):
            cast.replace(exp.Cast(this=cast.this, to=cast.to))
    return tree


def _selected(values: exp.Values) -> exp.Query:
    """The rows of VALUES as SELECTs, with its names of columns, or Spark's.

    Raises:
        CallError: there is a DEFAULT in them.
    """
    if any(isinstance(item, exp.Var) for row in values.expressions for item in row.expressions):
        raise CallError("DEFAULT is not available in VALUES with LLM calls: leave the column out, or INSERT those rows")
    alias = values.args.get("alias")
    width = len(values.expressions[0].expressions)
    names = [column.name for column in alias.columns] if alias is not None and alias.columns else []
    names = names or [f"col{number}" for number in range(1, width + 1)]
    rows = [
        exp.select(*[exp.alias_(item.copy(), name, quoted=True) for item, name in zip(row.expressions, names)])
        for row in values.expressions
    ]
    return rows[0] if len(rows) == 1 else exp.union(*rows, distinct=False)


def join_lateral_views(tree: exp.Expression) -> None:
    """Write `LATERAL VIEW explode(x) t AS c` as a join, in place: the planner joins answers after all that has rows."""
    for select in tree.find_all(exp.Select):
        laterals = select.args.get("laterals") or []
        for lateral in laterals:
            if lateral.args.get("view"):
                kind = {"side": "LEFT", "on": exp.true()} if lateral.args.get("outer") else {"kind": "CROSS"}
                rows = exp.Lateral(this=lateral.this.copy(), alias=lateral.args["alias"].copy())
                select.append("joins", exp.Join(this=rows, **kind))
        select.set("laterals", [lateral for lateral in laterals if not lateral.args.get("view")])
