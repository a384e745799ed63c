"""UPDATE, DELETE and MERGE: a SELECT reads the rows to change and their new values, then the statement looks them up.

The SELECT is planned like any other, so it asks about the rows that the cheap predicates leave. Its rows go to a
scratch table under the number that DuckDB gives each row of a table (`rowid`), which stays as it is while our
transaction runs:

    UPDATE t SET x = llm('…', y) WHERE k > 3
    -> rows: SELECT t.rowid, llm('…', y) AS v0 FROM t WHERE k > 3
    -> UPDATE t SET x = rows.v0 FROM rows WHERE t.rowid = rows.row

A row that FROM or USING matches twice stands in the scratch table twice, so counts and RETURNING are as without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.planner.calls import has_llm_call
from llmsql.planner.catalog import Catalog
from llmsql.planner.clauses import CHANGING, attach_ctes, table_named, visible_ctes
from llmsql.planner.plan import ROW_NUMBER, Materialise
from llmsql.planner.scratch_names import fresh_name


@dataclass
class Reading:
    """The SELECT that reads the rows of a changing statement, until it is planned a subquery of the statement.

    `name` of the scratch table; `row`, `values`: its columns with the row's number, and with expressions of the
    statement.
    """

    name: str
    select: exp.Select
    row: str
    values: list[str] = field(default_factory=list)

    def move(self, expression: exp.Expression, alias: str) -> exp.Column:
        """Let the SELECT compute an expression of the statement; the column that holds it."""
        self.values.append(f"{self.name}_v{len(self.values)}")
        self.select.select(exp.alias_(expression, self.values[-1]), copy=False)
        return exp.column(self.values[-1], table=alias)


def reading_of(statement: exp.Expression, catalog: Catalog) -> Reading | str | None:
    """Rewrite a changing statement so that a SELECT in it does the reading.

    Returns None where it has nothing to ask by itself, or the reason why it cannot be rewritten; then the statement is
    as it was.

    Raises:
        QueryError: the statement names an unknown table.
    """
    if not isinstance(statement, CHANGING) or not any(has_llm_call(part) for part in _own_parts(statement)):
        return None
    target = statement.this
    if not isinstance(target, exp.Table) or not target.alias_or_name:
        return f"{statement.key.upper()} of this target is run by the SQL engine itself"
    whole = exp.select("*").from_(target.copy())
    if any(name.lower() == ROW_NUMBER for name, _ in catalog.columns(whole)):
        return f"a column called {ROW_NUMBER} hides the numbers of the table's rows"
    name = fresh_name("rows")
    row = exp.column(ROW_NUMBER, table=exp.to_identifier(target.alias_or_name, quoted=True))
    reading = Reading(name, exp.select(exp.alias_(row, f"{name}_row")), f"{name}_row")
    rewrite = _merge if isinstance(statement, exp.Merge) else _delete if isinstance(statement, exp.Delete) else _update
    return rewrite(statement, target, row, reading) or reading


def read_once(reading: Reading) -> Materialise:
    """The step that runs the planned SELECT; the statement reads the scratch table in its place."""
    subquery = reading.select.parent
    assert isinstance(subquery, exp.Subquery)
    query = attach_ctes(reading.select.copy(), visible_ctes(reading.select))
    table = table_named(reading.name)
    if subquery.alias != reading.name:
        table.set("alias", subquery.args["alias"])
    subquery.replace(table)
    return Materialise(reading.name, None, query.sql(dialect="duckdb"), "the rows to change")


def _own_parts(statement: exp.Expression) -> Iterator[exp.Expression]:
    """The parts whose calls the reading takes; queries in FROM and CTEs are planned by themselves."""
    for part in ("where", "on", "whens"):
        if isinstance(statement.args.get(part), exp.Expression):
            yield statement.args[part]
    yield from statement.expressions  # SET


def _update(statement: exp.Expression, target: exp.Table, row: exp.Column, reading: Reading) -> str | None:
    assignments = _assignments(statement.expressions)
    if assignments is None:
        return "SET takes several columns from one expression"
    source = statement.args.get("from_")
    statement.set("expressions", assignments)
    for assignment in assignments:
        value = assignment.expression
        if has_llm_call(value) or value.find(exp.Query) or (source is not None and value.find(exp.Column)):
            assignment.set("expression", reading.move(value.copy(), reading.name))
    _read_from(reading, statement, target, [source.this] if source is not None else [])
    statement.set("from_", exp.From(this=_subquery(reading, reading.name)))
    statement.set("where", exp.Where(this=_same_row(row, reading, reading.name)))
    return None


def _delete(statement: exp.Expression, target: exp.Table, row: exp.Column, reading: Reading) -> None:
    _read_from(reading, statement, target, statement.args.get("using") or [])
    statement.set("using", [_subquery(reading, reading.name)])
    statement.set("where", exp.Where(this=_same_row(row, reading, reading.name)))


def _merge(statement: exp.Expression, target: exp.Table, row: exp.Column, reading: Reading) -> str | None:
    """The source, joined to the rows of the target that it matches, is the new source."""
    source, condition = statement.args["using"], statement.args.get("on")
    whens: list[exp.When] = statement.args["whens"].expressions
    if condition is None or not source.alias_or_name:
        return "MERGE with USING (columns), or a source without a name, is run by the SQL engine itself"
    if any(_takes_all_columns(when.args["then"]) for when in whens):
        return "an action of MERGE takes all columns of the source"
    if not has_llm_call(condition) and all(when.args.get("source") for when in whens if has_llm_call(when)):
        return "WHEN NOT MATCHED BY SOURCE sees rows that the source does not have"
    alias = source.alias_or_name
    joined = exp.Join(this=target.copy(), side="LEFT", on=condition.copy())
    reading.select.set("from_", exp.From(this=source.copy()))
    reading.select.append("joins", joined)
    reading.select.select(exp.column(exp.Star(), table=exp.to_identifier(alias, quoted=True)), copy=False)
    for matched in (True, False):
        found = exp.Is(this=row.copy(), expression=exp.null())
        before: list[exp.Expression] = [exp.not_(found) if matched else found]
        for when in whens:
            if bool(when.args["matched"]) != matched or when.args.get("source"):
                continue
            chosen = _move_values(when, before, reading, alias)
            before = [*before, exp.not_(exp.Is(this=exp.paren(chosen), expression=exp.true()))]
    statement.set("using", _subquery(reading, alias))
    statement.set("on", _same_row(row, reading, alias))
    return None


def _move_values(when: exp.When, before: list[exp.Expression], reading: Reading, alias: str) -> exp.Expression:
    """Let the reading compute what a WHEN asks, for rows that come to it; its condition, over the reading's FROM."""

    def move(value: exp.Expression, needed: list[exp.Expression]) -> None:
        if has_llm_call(value):
            known = exp.and_(*[condition.copy() for condition in needed], copy=False)
            case = exp.Case(ifs=[exp.If(this=known, true=over_reading(value))])
            value.replace(reading.move(case, alias))

    def over_reading(value: exp.Expression) -> exp.Expression:
        written = value.copy()
        if not when.args["matched"]:  # only the source can be meant, in the reading it stands beside the target
            for column in list(written.find_all(exp.Column)):
                if not column.table and column.find_ancestor(exp.Query) is None:
                    column.set("table", exp.to_identifier(alias, quoted=True))
        return written

    condition = when.args.get("condition")
    chosen = over_reading(condition) if condition is not None else exp.true()
    action = when.args["then"]
    if isinstance(action, exp.Update):
        for assignment in action.expressions:
            move(assignment.expression, [*before, chosen])
    elif isinstance(action, exp.Insert) and isinstance(action.expression, exp.Tuple):
        for value in list(action.expression.expressions):
            move(value, [*before, chosen])
    if condition is not None:
        move(condition, before)
    return chosen


def _takes_all_columns(action: exp.Expression) -> bool:
    if isinstance(action, exp.Update):
        return not action.expressions or any(isinstance(item, exp.Star) for item in action.expressions)
    return isinstance(action, exp.Insert) and not isinstance(action.args.get("expression"), exp.Tuple)


def refuse_by_name(statement: exp.Merge) -> None:
    """Refuse what sqlglot cannot write again.

    Raises:
        QueryError: the statement has INSERT BY NAME.
    """
    for action in statement.find_all(exp.Insert):
        columns = action.this
        if isinstance(columns, exp.Tuple) and any(isinstance(item, exp.Alias) for item in columns.expressions):
            raise QueryError(
                "INSERT BY NAME of MERGE is not available with LLM calls: name the columns and their VALUES"
            )


def _assignments(expressions: list[exp.Expression]) -> list[exp.Expression] | None:
    """The assignments of SET one by one; None where a tuple of columns gets something else than a tuple."""
    found: list[exp.Expression] = []
    for assignment in expressions:
        if not isinstance(assignment, exp.EQ):
            return None
        left, right = assignment.this, assignment.expression
        if not isinstance(left, exp.Tuple):
            found.append(assignment)
        elif isinstance(right, exp.Tuple) and len(left.expressions) == len(right.expressions):
            pairs = zip(left.expressions, right.expressions)
            found += [exp.EQ(this=column.copy(), expression=value.copy()) for column, value in pairs]
        else:
            return None
    return found


def _read_from(reading: Reading, statement: exp.Expression, target: exp.Table, others: list[exp.Expression]) -> None:
    """FROM and WHERE of the reading: the target, then what the statement names beside it."""
    reading.select.set("from_", exp.From(this=target.copy()))
    for other in others:
        source = other.copy()
        joins = source.args.get("joins") or []
        source.set("joins", None)
        for join in [exp.Join(this=source), *joins]:
            reading.select.append("joins", join)
    where = statement.args.get("where")
    if where is not None:
        reading.select.set("where", where.copy())


def _subquery(reading: Reading, alias: str) -> exp.Subquery:
    name = exp.Identifier(this=alias, quoted=alias != reading.name)
    return exp.Subquery(this=reading.select, alias=exp.TableAlias(this=name))


def _same_row(row: exp.Column, reading: Reading, alias: str) -> exp.EQ:
    table = exp.Identifier(this=alias, quoted=alias != reading.name)
    return exp.EQ(this=row.copy(), expression=exp.column(reading.row, table=table))
