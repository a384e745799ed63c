"""Stages for the calls of one SELECT, and their results in the calls' places."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from llmsql.functions import Call
from llmsql.planner.calls import ParsedCall, calls_in, is_constant
from llmsql.planner.clauses import clause_of, hide_columns, table_named
from llmsql.planner.exact import same_value
from llmsql.planner.grouping import Grouping
from llmsql.planner.guards import any_guard, guard
from llmsql.planner.hazards import may_raise
from llmsql.planner.plan import Stage
from llmsql.planner.planning import INFERRED, SAME_IN_GROUP, TEXT, is_left_in_place
from llmsql.planner.products import reduce_products
from llmsql.planner.scope import Scope, WhereParts
from llmsql.planner.scratch_names import fresh_name
from llmsql.planner.siblings import Siblings

CLAUSES = {"expressions": "the SELECT list", "group": "GROUP BY", "order": "ORDER BY"}
Key = tuple[Call, tuple[str, ...]]  # a call, and its arguments by name
Staged = tuple[Stage, bool]  # the stage of a call, and whether it asks for all rows that survive


class Staging:
    """Makes the stages of a SELECT: one for each distinct call, and another where more rows need the same call later.

    `surviving` are the predicates that rows must pass before a call sees them. `names` of relations for answers can be
    shared with other SELECTs.
    """

    def __init__(self, scope: Scope, names: dict[Key, str] | None = None):
        self.scope = scope
        self.surviving: list[exp.Expression] = []
        self._staged: dict[Key, Stage] = {}
        self._complete: set[Key] = set()  # asked for all rows that survive
        self._result_columns: list[str] = []
        self._filtered = False  # a call has had its say in which rows survive
        self._names = {} if names is None else names  # relations of answers, which several SELECTs may add to

    def stage_filters(self) -> list[Staged]:
        """Stage the calls of WHERE, predicate by predicate; later stages rely on the earlier predicates."""
        parts = self.scope.split_where()
        asking = exp.Tuple(expressions=[predicate.copy() for predicate in parts.asking])
        self.surviving = parts.first
        found: list[Staged] = []
        for index in range(len(asking.expressions)):
            found += self._stage_all(calls_in(asking.expressions[index]), asking, lambda node: False)
            self._protect(asking, index)
            self.surviving = [*self.surviving, asking.expressions[index]]
            self._filtered = True
        self._write_where(parts, asking.expressions)
        return found

    def adopt_filters(self, parts: WhereParts, found: list[list[Staged]]) -> None:
        """Put the results of stages that were made elsewhere in the places of WHERE's calls, predicate by predicate."""
        asking = exp.Tuple(expressions=[predicate.copy() for predicate in parts.asking])
        self._filtered = True
        for index, staged in enumerate(found):
            for node, (stage, complete) in zip(calls_in(asking.expressions[index]), staged):
                parsed = self.scope.parse(node)
                key = self._key(parsed)
                if key not in self._staged:
                    self._staged[key] = stage
                    self._names[key] = stage.name
                    self._join(stage, parsed, may_be_missing=True)
                if complete:
                    self._complete.add(key)
                node.replace(_value(stage))
            self._protect(asking, index)
        self.surviving = [*parts.first, *asking.expressions]
        self._write_where(parts, asking.expressions)

    def _protect(self, asking: exp.Tuple, index: int) -> None:
        """Compute a predicate that may raise only for rows that pass those before it; the SQL engine may not wait."""
        predicate = asking.expressions[index]
        if index and may_raise(predicate, self.scope.is_text):
            predicate.replace(_after(asking.expressions[:index], predicate))

    def _write_where(self, parts: WhereParts, asking: list[exp.Expression]) -> None:
        """WHERE with the results in it; what may raise comes after them."""
        where = self.scope.select.args.get("where")
        if where is not None:
            rest = [_after(asking, predicate) for predicate in parts.rest]
            where.set("this", exp.and_(*parts.cheap, *asking, *rest))

    def reuse_filters(self) -> None:
        """A call that WHERE asked already has its value; the SELECT list reads the same column."""
        if not self._complete or Grouping(self.scope.select, self.scope.catalog).is_grouped:
            return
        for node in self.scope.calls():
            key = self._key(self.scope.parse(node))
            if key in self._complete:
                node.replace(_value(self._staged[key]))

    def stage_others(self) -> None:
        """Stage the calls outside of WHERE, for the rows that WHERE leaves."""
        grouping = Grouping(self.scope.select, self.scope.catalog)
        after = {id(node): grouping.is_after_grouping(node) for node in self.scope.calls()}
        self._stage_all(self.scope.calls(), self.scope.select, lambda node: after[id(node)])

    def start_over(self) -> None:
        """The SELECT reads from a table of the rows that survive; nothing is joined to it yet."""
        self.surviving = []
        self._filtered = False
        self._staged.clear()
        self._names.clear()
        self._complete.clear()

    def hide_result_columns(self) -> None:
        """A bare star must not show the joined results."""
        for item in self.scope.select.expressions:
            if isinstance(item, exp.Star):
                hide_columns(item, self._result_columns)

    def _stage_all(
        self, waiting: list[exp.Anonymous], root: exp.Expression, after_grouping: Callable[[exp.Anonymous], bool]
    ) -> list[Staged]:
        """Stage these calls, inner ones first, and put the result's column where each of them stands."""
        siblings = Siblings(self.scope)
        found: dict[int, Staged] = {}
        calls = list(waiting)
        while waiting:
            node = waiting[0]
            equal = [other for other in waiting if other == node]
            waiting = [other for other in waiting if other != node]
            parsed = self.scope.parse(node)
            key = self._key(parsed)
            if key not in self._complete:
                place = "WHERE" if root is not self.scope.select else clause_of(node, root)
                self._add_stage(key, node, parsed, self._guard(equal, root, siblings), place)
            for occurrence in equal:
                found[id(occurrence)] = self._staged[key], key in self._complete
                value: exp.Expression = _value(self._staged[key])
                if after_grouping(occurrence):
                    value = exp.Anonymous(this="any_value", expressions=[value])
                    value.meta[SAME_IN_GROUP] = True
                occurrence.replace(value)
        return [found[id(node)] for node in calls]

    def _guard(self, equal: list[exp.Anonymous], root: exp.Expression, siblings: Siblings) -> exp.Expression | None:
        """When the value of a call can matter at one of the places where it stands; None when it always does."""
        if not self.scope.planning.switches.short_circuit:
            return None
        found = [guard(node, root, siblings) for node in equal]
        return any_guard([[self.scope.holds_or_raises(c) for c in conditions] for conditions in found])

    def _key(self, parsed: ParsedCall) -> Key:
        named = zip((None,) * (parsed.prompt is not None) + tuple(name for name, _ in parsed.fields), parsed.arguments)
        return parsed.call, tuple(
            f"{name}: {argument.sql(dialect=self.scope.catalog.dialect)}" for name, argument in named
        )

    def _add_stage(
        self, key: Key, node: exp.Anonymous, parsed: ParsedCall, guarded: exp.Expression | None, place: str
    ) -> None:
        """Add the stage that asks a call; where an earlier one did for other rows, its answers grow by this one's."""
        dialect = self.scope.catalog.dialect
        known = self._staged.get(key)
        name = self._names.get(key) or fresh_name("answers")
        self._names[key] = name
        columns = tuple(f"a{number}" for number in range(len(parsed.arguments)))
        projections = [exp.alias_(argument, column) for argument, column in zip(parsed.arguments, columns)]
        source = self.scope.source_query(
            [*projections, exp.alias_(self.scope.row_count(), "n")],
            [*self.surviving, *([guarded] if guarded is not None else [])],
        )
        source.set("group", exp.Group(all=True))
        reduce_products(source, self.scope.answers)
        if all(is_constant(argument) for argument in parsed.arguments):
            source.having("n > 0", copy=False)  # without a group key there is a row also where there are none
        stage = Stage(
            name=name,
            call=parsed.call,
            call_sql=node.meta[TEXT],
            fields=tuple(field_name for field_name, _ in parsed.fields),
            columns=columns,
            keys=tuple(f"{name}_{column}" for column in columns),
            value=f"{name}_value",
            input_sql=source.sql(dialect=dialect),
            place=CLAUSES.get(place, place.upper()),
            inferred=node.meta.get(INFERRED),
        )
        self.scope.planning.steps.append(stage)
        self._staged[key] = stage
        if guarded is None:
            self._complete.add(key)
        if known is None:
            self._join(stage, parsed, may_be_missing=guarded is not None or self._filtered)

    def _join(self, stage: Stage, parsed: ParsedCall, *, may_be_missing: bool) -> None:
        """Join a stage's answers to FROM; an argument is computed here also for rows that the call never sees."""
        self._result_columns += [*stage.keys, stage.value]
        equal = []
        for argument, key in zip(parsed.arguments, stage.keys):
            value = argument.copy()
            if may_be_missing and may_raise(value, self.scope.is_text):
                value = self.scope.catalog.attempt(value, self.scope.is_text, wholly=False) or value
            answered = exp.column(key, table=stage.name)
            equal.append(same_value(value, answered, by_bytes=self.scope.planning.by_bytes))
        self.scope.answers[stage.name] = stage.call.sql_type
        join_answers(self.scope.select, table_named(stage.name), exp.and_(*equal, copy=False))


def join_answers(select: exp.Select, table: exp.Table, condition: exp.Expression) -> None:
    """Join a relation of answers to the FROM of a SELECT."""
    if select.args.get("from_") is None:
        select.set("from_", exp.From(this=exp.select("1").subquery("llmsql_row")))
    for join in select.args.get("joins") or []:
        if not (join.kind or join.side or join.method or join.args.get("on") or join.args.get("using")):
            join.set("kind", "CROSS")  # a comma binds weaker than JOIN, and would hide the tables before it
    select.append("joins", exp.Join(this=table, side="LEFT", on=condition))


def _value(stage: Stage) -> exp.Column:
    return exp.column(stage.value, table=stage.name)


def _after(passed: list[exp.Expression], predicate: exp.Expression) -> exp.Expression:
    """A predicate without calls that may raise, computed only for rows that pass those with calls."""
    if is_left_in_place(predicate) or not passed:
        return predicate.copy()
    return exp.Case(ifs=[exp.If(this=exp.and_(*passed), true=predicate.copy())])
