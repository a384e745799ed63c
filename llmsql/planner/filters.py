"""The predicates of one WHERE that ask the model, as a step that chooses their order, and where to stop, as it runs."""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from llmsql.planner.calls import calls_in, positional_arguments
from llmsql.planner.carry import EarlyStop
from llmsql.planner.clauses import table_named
from llmsql.planner.hazards import may_raise
from llmsql.planner.plan import Filter, Filters, Stage
from llmsql.planner.products import reduce_products
from llmsql.planner.scope import Scope
from llmsql.planner.scratch_names import fresh_name
from llmsql.planner.staging import Key, Staged, Staging


def stage_together(scope: Scope, staging: Staging, stop: EarlyStop | None) -> bool:
    """Make one step of the predicates of WHERE that ask the model; False where there is nothing to choose.

    Args:
        scope: of the SELECT.
        staging: gets the calls' results.
        stop: the table of rows in which to stop early, if so.
    """
    parts = scope.split_where()
    choose = scope.planning.switches.order_filters and not any(_may_raise(p, scope) for p in parts.asking[1:])
    if stop is None and (not choose or len(parts.asking) < 2 or parts.rest):
        return False
    if any(predicate.find(exp.Query) is not None for predicate in parts.asking):
        return False  # its columns would have to be told from those of the SELECT
    candidates = _Candidates(scope, stop)
    predicates = [candidates.write(predicate) for predicate in parts.asking]
    if not candidates.columns:
        if stop is not None:
            scope.planning.steps.append(stop.rows)
        return False
    if stop is None:
        columns = [exp.alias_(column, name) for name, column in candidates.columns.items()]
        query = scope.source_query([*columns, exp.alias_(exp.Count(this=exp.Star()), "n")], parts.first)
        query.set("group", exp.Group(all=True))
        reduce_products(query, scope.answers)
        sql = query.sql(dialect=scope.catalog.dialect)
    else:
        sql = stop.rows.sql
    names: dict[Key, str] = {}
    filters: list[Filter] = []
    asked: list[list[Staged]] = []
    for original, predicate in zip(parts.asking, predicates):
        made, stages_of_calls = _one_filter(candidates, predicate, names, scope.user_text(original))
        filters.append(made)
        asked.append(stages_of_calls)
    scope.planning.steps.append(
        Filters(
            name=candidates.name,
            batch=candidates.batch,
            columns=tuple(candidates.columns) if stop is None else stop.rows.columns or (),
            needed=tuple(candidates.columns),
            candidates_sql=sql,
            filters=tuple(filters),
            choose=choose,
            enough=stop.enough if stop is not None else None,
        )
    )
    staging.adopt_filters(parts, asked)
    return True


class _Candidates:
    """The rows, or distinct rows, that the predicates choose from, and a batch of them that the stages read.

    `columns` maps the names c0, c1, ... in these tables to columns of the SELECT.
    """

    def __init__(self, scope: Scope, stop: EarlyStop | None):
        self.scope = scope
        self.stop = stop
        self.name = fresh_name("candidates") if stop is None else stop.rows.name
        self.batch = f"{self.name}_batch"
        self.columns: dict[str, exp.Expression] = {}

    def write(self, predicate: exp.Expression) -> exp.Expression:
        """A predicate over the columns of the candidates."""
        return predicate.transform(lambda node: self._column(node) if isinstance(node, exp.Column) else node)

    def _column(self, column: exp.Column) -> exp.Column:
        if self.stop is not None:
            self.columns.setdefault(column.name, column.copy())
            return column
        name = next((name for name, known in self.columns.items() if known == column), f"c{len(self.columns)}")
        self.columns.setdefault(name, column.copy())
        written = exp.column(name, table=self.name)
        self.scope.carried[written.sql(dialect=self.scope.catalog.dialect)] = column.copy()
        return written


class _BatchScope(Scope):
    """A SELECT over a batch of the candidates, with one predicate."""

    def __init__(self, candidates: _Candidates, predicate: exp.Expression):
        whole = candidates.scope
        table = exp.alias_(table_named(candidates.batch), candidates.name, table=True, copy=False)
        self._whole = whole
        self.select = exp.select(exp.column(exp.Star(), table=candidates.name)).from_(table).where(predicate)
        self.planning = replace(whole.planning, steps=[], ctes=[])
        self.catalog = whole.catalog
        self.original = self.select
        self.carried = whole.carried
        self.answers = {}
        self._count = exp.column("n", table=candidates.name)

    def is_text(self, column: exp.Expression) -> bool | None:
        own = isinstance(column, exp.Column) and column.table in self.answers
        return super().is_text(column) if own else self._whole.is_text(column)

    def row_count(self) -> exp.Expression:
        return exp.cast(exp.Sum(this=self._count.copy()), "BIGINT")


def _may_raise(predicate: exp.Expression, scope: Scope) -> bool:
    """Whether the predicate could stop the statement for rows that those before it would have dropped."""
    alone = exp.paren(predicate)
    for call in calls_in(alone):
        fields = [argument.unalias().copy() for argument in positional_arguments(call)]
        call.replace(exp.Struct(expressions=fields))
    return may_raise(alone, scope.is_text)


def _one_filter(
    candidates: _Candidates, predicate: exp.Expression, names: dict[Key, str], text: str
) -> tuple[Filter, list[Staged]]:
    """The step's part for one predicate; and for each of its calls the stage, and whether it sees all rows."""
    scope = _BatchScope(candidates, predicate)
    found = Staging(scope, names).stage_filters()
    stages = tuple(step for step in scope.planning.steps if isinstance(step, Stage))
    return Filter(sql=text, stages=stages, passing_sql=scope.select.sql(dialect=scope.catalog.dialect)), found
