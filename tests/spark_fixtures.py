"""The planner's fixtures, which are written for DuckDB, in Spark's words."""

from __future__ import annotations

import re
from typing import ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.transforms import any_to_exists, preprocess, unnest_to_explode

from llmsql.functions import FUNCTIONS

# What sqlglot does not put in Spark's words, or not rightly: before it reads the statement, and after it wrote it.
BEFORE = (
    (r"^(CREATE .*TABLE .* AS) FROM", r"\1 SELECT * FROM"),  # FROM first
    (r"\bFROM range\((\d+)\) (\w+)\((\w+)\)", r"FROM (SELECT id AS \3 FROM numbers_to(\1)) \2"),
    (r"\bFROM range\((\d+)\)", r"FROM (SELECT id AS range FROM numbers_to(\1))"),
    (r"\bgenerate_series\((\d+), (\d+)\) (\w+)\((\w+)\)", r"(SELECT id AS \4 FROM numbers_to(\1, \2 + 1)) \3"),
    (r"\blist\((\w+) ORDER BY \1\)", r"list_sort(list(\1))"),  # Spark's lists come in any order
    (r"\bstring_agg\((\w+), ('[^']*') ORDER BY review_id\)", r"join_by_id(\1, \2)"),
)
AFTER = (
    (r"\bNUMBERS_TO\(", "range("),
    (r"^CREATE VIEW", r"CREATE OR REPLACE TEMPORARY VIEW"),  # over views that are temporary
    (r"^CREATE OR REPLACE (TEMP\w* )?TABLE", r"CREATE TABLE"),
    (r"^(CREATE TABLE (?:`[^`]*`|\w+)(?: \([^)]*\))?)", r"\1 USING parquet"),
    (
        r"\bJOIN_BY_ID\((\w+), ('[^']*')\)",
        r"array_join(transform(array_sort(collect_list(struct(review_id, \1))), x -> x.\1), \2)",
    ),
)


class Written(Spark):
    """Spark's dialect with QUALIFY and DISTINCT ON, which planned statements may have."""

    class Generator(Spark.Generator):
        TRANSFORMS: ClassVar = {
            **Spark.Generator.TRANSFORMS,
            exp.Select: preprocess([unnest_to_explode, any_to_exists]),
        }


def in_spark(sql: str) -> str:
    """A statement in Spark's words."""
    return _written(_parsed(sql), Written)


def without_calls(sql: str) -> str:
    """A statement in Spark's words with an expression of Spark's own for each call, which needs the same columns."""
    return _written(_parsed(sql).transform(_stand_in), Spark)


def _parsed(sql: str) -> exp.Expression:
    for pattern, replacement in BEFORE:
        sql = re.sub(pattern, replacement, sql)
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    for node in tree.find_all(exp.Table, exp.Column):  # Spark's tables are views of the session
        for part in ("db", "catalog"):
            node.set(part, None)
    for option in list(tree.find_all(exp.PropertyEQ)):
        if isinstance(option.parent, exp.Anonymous):
            option.replace(exp.Kwarg(this=exp.var(option.this.name), expression=option.expression))
    return tree


def _written(tree: exp.Expression, dialect: type[Spark]) -> str:
    text = str(tree.sql(dialect=dialect))
    for pattern, replacement in AFTER:
        text = re.sub(pattern, replacement, text)
    return text


def _stand_in(node: exp.Expression) -> exp.Expression:
    if not isinstance(node, exp.Anonymous) or node.name.lower() not in FUNCTIONS:
        return node
    function = FUNCTIONS[node.name.lower()]
    given = [argument.unalias() for argument in node.expressions if not isinstance(argument, exp.Kwarg)]
    needed = [argument.transform(_stand_in) for argument in [given[0], *given[function.leading :]]]
    said = exp.Anonymous(this="to_json", expressions=[exp.Anonymous(this="struct", expressions=needed)])
    return exp.TryCast(this=said, to=exp.DataType.build(function.sql_type, dialect="duckdb"), safe=True)
