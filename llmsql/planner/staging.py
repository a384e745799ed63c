"""Stages for the calls of one SELECT, and their results in the calls' places."""

from __future__ import annotations

from sqlglot import exp

from llmsql.functions import Call
from llmsql.planner.calls import ParsedCall, calls_in
from llmsql.planner.clauses import clause_of
from llmsql.planner.grouping import Grouping
from llmsql.planner.plan import Stage
from llmsql.planner.planning import TEXT
from llmsql.planner.scope import Scope

CLAUSES = {"expressions": "the SELECT list", "group": "GROUP BY", "order": "ORDER BY"}


class Staging:
    """Makes stages for a SELECT; a call that was staged once is not staged again.

    `surviving` are the predicates that rows must pass before a call sees them.
    """

    def __init__(self, scope: Scope):
        self.scope = scope
        self.surviving: list[exp.Expression] = []
        self._staged: dict[tuple[Call, tuple[str, ...]], exp.Column] = {}
        self._result_columns: list[str] = []

    def stage_filters(self) -> None:
        """Stage the calls of WHERE, predicate by predicate; later stages rely on the earlier predicates."""
        where = self.scope.select.args.get("where")
        if where is None:
            return
        self.surviving, asking = self.scope.split_where()
        rest = [c.copy() for c in [*self.surviving, *asking] if not calls_in(c)]
        holder = exp.Tuple(expressions=[c.copy() for c in asking if calls_in(c)])
        for index in range(len(holder.expressions)):
            for node in calls_in(holder.expressions[index]):
                self._stage(node, "WHERE", grouped=False)
            self.surviving = [*self.surviving, holder.expressions[index]]
        where.set("this", exp.and_(*rest, *holder.expressions))

    def reuse_filters(self) -> None:
        """A call that WHERE asked already has its value; the SELECT list reads the same column."""
        if not self._staged or Grouping(self.scope.select, self.scope.catalog).is_grouped:
            return
        for node in self.scope.calls():
            if self._key(self.scope.parse(node)) in self._staged:
                self._stage(node, "", grouped=False)

    def stage_others(self) -> None:
        """Stage the calls outside of WHERE, for the rows that WHERE leaves."""
        grouping = Grouping(self.scope.select, self.scope.catalog)
        nodes = self.scope.calls()
        after = [grouping.is_after_grouping(node) for node in nodes]
        for node, grouped in zip(nodes, after):
            clause = clause_of(node, self.scope.select)
            self._stage(node, CLAUSES.get(clause, clause.upper()), grouped=grouped)

    def hide_result_columns(self) -> None:
        """A bare star must not show the joined results."""
        for item in self.scope.select.expressions:
            if isinstance(item, exp.Star):
                hidden = [exp.column(name) for name in self._result_columns]
                item.set("except_", [*(item.args.get("except_") or []), *hidden])

    def _stage(self, node: exp.Anonymous, place: str, *, grouped: bool) -> None:
        """Add the stage for one call, join its result, and put the result's column where the call stood."""
        parsed = self.scope.parse(node)
        key = self._key(parsed)
        value = self._staged.get(key)
        if value is None:
            value = self._new_stage(node, parsed, place)
            self._staged[key] = value
        result: exp.Expression = value.copy()
        if grouped:
            result = exp.Anonymous(this="any_value", expressions=[result])
        node.replace(result)

    def _key(self, parsed: ParsedCall) -> tuple[Call, tuple[str, ...]]:
        named = zip((None,) * (parsed.prompt is not None) + tuple(name for name, _ in parsed.fields), parsed.arguments)
        return parsed.call, tuple(
            f"{name}: {argument.sql(dialect=self.scope.catalog.dialect)}" for name, argument in named
        )

    def _new_stage(self, node: exp.Anonymous, parsed: ParsedCall, place: str) -> exp.Column:
        dialect = self.scope.catalog.dialect
        name = self.scope.catalog.fresh_name("answers")
        columns = tuple(f"a{number}" for number in range(len(parsed.arguments)))
        keys = tuple(f"{name}_{column}" for column in columns)
        projections = [exp.alias_(argument.copy(), column) for argument, column in zip(parsed.arguments, columns)]
        counted = exp.alias_(exp.Count(this=exp.Star()), "n")
        source = self.scope.source_query([*projections, counted], self.surviving)
        source.set("group", exp.Group(all=True))
        stage = Stage(
            name=name,
            call=parsed.call,
            call_sql=node.meta[TEXT],
            fields=tuple(field_name for field_name, _ in parsed.fields),
            columns=columns,
            keys=keys,
            value=f"{name}_value",
            input_sql=source.sql(dialect=dialect),
            place=place,
        )
        self.scope.planning.steps.append(stage)
        self._result_columns += [*stage.keys, stage.value]
        equal = [
            exp.NullSafeEQ(this=argument.copy(), expression=exp.column(key, table=name))
            for argument, key in zip(parsed.arguments, keys)
        ]
        self._join(exp.to_table(name), exp.and_(*equal))
        return exp.column(stage.value, table=name)

    def _join(self, table: exp.Table, condition: exp.Expression) -> None:
        if self.scope.select.args.get("from_") is None:
            self.scope.select.set("from_", exp.From(this=table))
            return
        for join in self.scope.select.args.get("joins") or []:
            if not (join.kind or join.side or join.method or join.args.get("on") or join.args.get("using")):
                join.set("kind", "CROSS")  # a comma binds weaker than JOIN, and would hide the tables before it
        self.scope.select.append("joins", exp.Join(this=table, side="LEFT", on=condition))
