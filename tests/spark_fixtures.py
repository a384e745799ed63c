"""The planner's fixtures, which are written for DuckDB, in Spark's words."""

from __future__ import annotations

import re
from typing import ClassVar

import sqlglot
from planner_fixtures import Fixture
from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.transforms import any_to_exists, preprocess, unnest_to_explode

from llmsql.functions import FUNCTIONS
from llmsql.spark.dialect import PlannedSpark

# Statements that Spark's SQL says in other words than any translation would find, by the names of their fixtures.
SPELT = {
    "from: a correlated subquery": """
        SELECT p.product_id, (SELECT min(text) FROM (SELECT llm('Describe', p.title, r.body) AS text FROM reviews r
        WHERE r.product_id = p.product_id)) AS text FROM products p""",
    "grouping: a call in HAVING under GROUP BY ALL, which groups by its columns too": """
        SELECT substr(body, 1, 7) AS start, count(*) AS n FROM reviews GROUP BY substr(body, 1, 7), body
        HAVING llm_filter('Is it good?', body)""",
    "select_list: a star with a replaced column": """
        SELECT * EXCEPT (rating), rating * 2 AS rating, llm('Summarise', body) AS summary FROM reviews""",
    "subqueries: a scalar subquery over rows of both": """
        SELECT p.product_id, (SELECT min(text) FROM (SELECT llm('Describe', p.title, r.body) AS text FROM reviews r
        WHERE r.product_id = p.product_id AND r.rating > 2)) AS text FROM products p WHERE price > 2""",
    "subqueries: a LATERAL subquery that counts, beside all rows": """
        SELECT p.product_id, x.n FROM products p LEFT JOIN LATERAL (SELECT count_if(about) AS n FROM
        (SELECT llm_filter('Is it about that?', p.title, r.body) AS about FROM reviews r
        WHERE r.product_id = p.product_id)) x ON true""",
    "subqueries: names without qualifiers mean the inner row first": """
        SELECT product_id, (SELECT max(text) FROM (SELECT llm('Describe', title, body) AS text FROM reviews r
        WHERE r.product_id = p.product_id AND price > rating)) AS text FROM products p""",
    "subqueries: a call in the SELECT list and one in WHERE of a subquery": """
        SELECT p.product_id, (SELECT max(text) FROM (SELECT llm('Describe', r.author, p.title) AS text FROM reviews r
        WHERE r.product_id = p.product_id AND llm_filter('Is it good?', r.body))) AS text FROM products p
        WHERE llm_filter('Is it fun?', p.title)""",
    "subqueries: CASE in a subquery asks only where it is chosen": """
        SELECT p.product_id, (SELECT count(text) FROM (SELECT CASE WHEN r.rating > p.price THEN
        llm('Describe', r.body) END AS text FROM reviews r WHERE r.product_id = p.product_id)) AS n FROM products p""",
    "types: an item and a slice of a list": "SELECT id, llm('S', tags[0], slice(tags, 1, 1)) AS x FROM nested",
    "types: a map": "SELECT id, llm('S', map(s.name, s.size, 'k', 1)) AS x FROM nested",
    "types: large and small numbers": """
        SELECT llm('S', CAST(id AS DECIMAL(10, 0)) * 1000000000000000000000, id / 3.0D, CAST(id AS SMALLINT)) AS x
        FROM blanks""",
    "types: an enum and a UUID": """
        SELECT product_id, llm('S', category, '00000000-0000-0000-0000-000000000001') AS x FROM products""",
    "types: answers in a struct and in a map": """
        SELECT struct(llm('S', s.name) AS said, id AS n) AS x, map('said', llm('S', s.name)) AS m FROM nested""",
    "types: rows of a pivot": """
        SELECT category, llm('S', category) AS x, `0` FROM (SELECT category, product_id % 2 AS k FROM products)
        PIVOT (count(*) FOR k IN (0, 1))""",
    "where: the alias of an answer in WHERE": """
        SELECT review_id, llm_filter('Is it good?', body) AS good FROM reviews
        WHERE llm_filter('Is it good?', body) AND rating > 2""",
    "where: a predicate over an alias": """
        SELECT review_id, rating * 2 AS double_rating FROM reviews
        WHERE rating * 2 > 6 AND llm_filter('Is it good?', body)""",
    "windows_first: ORDER BY a window": """
        SELECT review_id, llm('Summarise', body) AS text FROM
        (SELECT *, row_number() OVER (ORDER BY review_id DESC) AS place FROM reviews) ORDER BY place LIMIT 4""",
    "windows_first: DISTINCT ON a position, above a filter and under LIMIT": """
        SELECT author AS who, llm('Summarise', body) AS text, * EXCEPT (place) FROM (SELECT *, row_number() OVER
        (PARTITION BY author ORDER BY review_id DESC) AS place FROM reviews WHERE llm_filter('Is it good?', body))
        WHERE place = 1 ORDER BY who NULLS LAST LIMIT 3""",
    "windows_first: DISTINCT ON an answer": """
        SELECT good, min(first) AS first FROM (SELECT llm_filter('Is it good?', body) AS good,
        min(review_id) OVER () AS first FROM reviews) GROUP BY good""",
}
# What sqlglot does not put in Spark's words, or not rightly: before it reads the statement, and after it wrote it.
BEFORE = (
    (r"^(CREATE .*TABLE .* AS) FROM", r"\1 SELECT * FROM"),  # FROM first
    (r"\bFROM range\((\d+)\) (\w+)\((\w+)\)", r"FROM (SELECT id AS \3 FROM numbers_to(\1)) \2"),
    (r"\bFROM range\((\d+)\)", r"FROM (SELECT id AS range FROM numbers_to(\1))"),
    (r"\bgenerate_series\((\d+), (\d+)\) (\w+)\((\w+)\)", r"(SELECT id AS \4 FROM numbers_to(\1, \2 + 1)) \3"),
    (r"\blist\((\w+) ORDER BY \1\)", r"list_sort(list(\1))"),  # Spark's lists come in any order
    (r"^(INSERT .*) RETURNING [^(]*$", r"\1"),
    (r"^COPY \((.*)\) TO '[^']*' \(FORMAT csv.*\)$", r"INSERT INTO to_directory \1"),
    (r"\bstring_agg\((\w+), ('[^']*') ORDER BY review_id\)", r"join_by_id(\1, \2)"),
)
AFTER = (
    (r"\bNUMBERS_TO\(", "range("),
    (r"^CREATE VIEW", r"CREATE OR REPLACE TEMPORARY VIEW"),  # over views that are temporary
    (r"^CREATE OR REPLACE (TEMP\w* )?TABLE", r"CREATE TABLE"),
    (r"^INSERT INTO to_directory", "INSERT OVERWRITE DIRECTORY 'copied' USING csv"),
    (r"^(CREATE TABLE (?:IF NOT EXISTS )?(?:`[^`]*`|\w+)(?: \([^)]*\))?)", r"\1 USING parquet"),
    (
        r"\bJOIN_BY_ID\((\w+), ('[^']*')\)",
        r"array_join(transform(array_sort(collect_list(struct(review_id, \1))), x -> x.\1), \2)",
    ),
)
# A type as options declare it, in a call of which a stand-in is made.
TYPE = re.compile(r"INTEGER|DOUBLE|BOOLEAN|DATE|VARCHAR\[\]|STRUCT\([\w ,]+\)")


class Written(Spark):
    """Spark's dialect with QUALIFY and DISTINCT ON, which planned statements may have."""

    class Generator(Spark.Generator):
        TRANSFORMS: ClassVar = {
            **Spark.Generator.TRANSFORMS,
            exp.Select: preprocess([unnest_to_explode, any_to_exists]),
        }


def in_spark(sql: str) -> str:
    """A statement of DuckDB's in Spark's words."""
    return _written(_parsed(sql), Written)


def statement(fixture: Fixture) -> str:
    """The statement of a fixture in Spark's words."""
    return SPELT[fixture.name] if fixture.name in SPELT else in_spark(fixture.sql)


def without_calls(fixture: Fixture) -> str:
    """The same with an expression of Spark's own for each call, which needs the same columns."""
    spelt = SPELT.get(fixture.name)
    return (
        in_spark_without_calls(fixture.sql) if spelt is None else _uncalled(sqlglot.parse_one(spelt, dialect="spark"))
    )


def in_spark_without_calls(sql: str) -> str:
    """A statement of DuckDB's in Spark's words, with an expression of Spark's own for each call."""
    return _uncalled(_parsed(sql))


def _uncalled(tree: exp.Expression) -> str:
    return _written(tree.transform(_stand_in), PlannedSpark)


def _parsed(sql: str) -> exp.Expression:
    for pattern, replacement in BEFORE:
        sql = re.sub(pattern, replacement, sql)
    tree = sqlglot.parse_one(sql, dialect="duckdb")
    for node in tree.find_all(exp.Table, exp.Column):  # Spark's tables are views of the session
        if node.args.get("catalog") or node.text("db") == "main":
            node.set("db", None)
            node.set("catalog", None)
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
    needed = [argument for argument in needed if not isinstance(argument, exp.Order)]
    said: exp.Expression = exp.Anonymous(this="to_json", expressions=[exp.Anonymous(this="struct", expressions=needed)])
    if function.name == "llm_agg":
        said = exp.Max(this=said)
    options = {
        argument.this.name: argument.expression.name for argument in node.expressions if isinstance(argument, exp.Kwarg)
    }
    declared = given[1].name if function.name == "llm_extract" else options.get("return_type", "")
    kind = exp.DataType.build(declared if TYPE.fullmatch(declared) else function.sql_type, dialect="duckdb")
    value = exp.TryCast(this=said, to=kind, safe=True)
    if kind.is_type(exp.DataType.Type.STRUCT, exp.DataType.Type.ARRAY, exp.DataType.Type.LIST):
        value = exp.Anonymous(this="from_json", expressions=[said, exp.Literal.string(kind.sql(dialect="spark"))])
    if options.get("on_error") == "return":
        return exp.Anonymous(this="named_struct", expressions=[_text("answer"), value, _text("error"), _text("")])
    return value


def _text(value: str) -> exp.Expression:
    return exp.Literal.string(value)
