"""Planning one SELECT: which rows each of its calls must see, and the SELECT without the calls.

The SELECT keeps its shape. Each call becomes a stage, and in the SELECT a column of the stage's result, which is
joined to its FROM on the values of the call's arguments. Calls in WHERE are staged first, after every predicate without
a call; the other calls see only the rows that are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.functions import FUNCTIONS, Call
from llmsql.planner.calls import (
    ParsedCall,
    call_text,
    calls_in,
    own_calls,
    parse_call,
)
from llmsql.planner.carry import keep_order, limit_first
from llmsql.planner.catalog import Catalog
from llmsql.planner.determinism import instability, volatile_function
from llmsql.planner.grouping import Grouping
from llmsql.planner.plan import InPlace, Materialise, Stage

IN_PLACE_PREFIX = "__llmsql_"
# Notes on nodes: which SELECT it is, how the user wrote the call, whether its arguments come from a query around it.
TAG = "llmsql_select"
TEXT = "llmsql_text"
CORRELATED = "llmsql_correlated"


@dataclass
class Planning:
    """What the SELECTs of one statement share while they are planned.

    `ctes` are the CTEs that the SELECT at hand can see, as they are now; `originals` maps the tag of each SELECT to a
    copy of it in which every call is a NULL of its type, so that it can be bound before any stage has run.
    `keep_reason`: why every call of the statement stays in place, if so; `in_place_prefix`: of the functions for those.
    """

    catalog: Catalog
    keep_reason: str | None = None
    in_place_prefix: str = IN_PLACE_PREFIX
    steps: list[Stage | Materialise] = field(default_factory=list)
    in_place: list[InPlace] = field(default_factory=list)
    ctes: list[exp.CTE] = field(default_factory=list)
    originals: dict[int, exp.Select] = field(default_factory=dict)


def plan_select(select: exp.Select, planning: Planning) -> None:
    """Stage the calls of one SELECT and rewrite it in place; calls of queries inside it are already planned.

    Raises:
        CallError: a call is written wrongly or names unknown columns.
    """
    SelectPlanner(select, planning).run()


def null_calls(expression: exp.Expression) -> exp.Expression:
    """A copy in which each LLM call is a NULL of the call's type."""

    def null(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Anonymous) and node.name.lower() in FUNCTIONS:
            return exp.cast(exp.null(), FUNCTIONS[node.name.lower()].sql_type)
        return node

    return expression.copy().transform(null)


def in_place_call(parsed: ParsedCall, prefix: str) -> exp.Expression:
    """The call as a UDF that knows its fields' names: (call as JSON, prompt or NULL, fields as a struct)."""
    fields = [
        exp.PropertyEQ(this=exp.to_identifier(name, quoted=True), expression=expression.copy())
        for name, expression in parsed.fields
    ]
    return exp.Anonymous(
        this=prefix + parsed.call.function,
        expressions=[
            exp.Literal.string(parsed.call.to_json()),
            parsed.prompt.copy() if parsed.prompt is not None else exp.null(),
            exp.Struct(expressions=fields),
        ],
    )


class SelectPlanner:
    """Plans one SELECT; see `plan_select`."""

    def __init__(self, select: exp.Select, planning: Planning):
        self.select = select
        self.planning = planning
        self.catalog = planning.catalog
        self.original = planning.originals[select.meta[TAG]]
        self.staged: dict[tuple[Call, tuple[str, ...]], exp.Column] = {}
        self.result_columns: list[str] = []
        self._source_columns: list[str] | None = None

    def run(self) -> None:
        """Plan every call of the SELECT."""
        if not own_calls(self.select):
            return
        self._name_outputs()
        for node in own_calls(self.select):
            node.meta[TEXT] = call_text(node, self.catalog.dialect)
        self._expand_aliases()
        for node in own_calls(self.select):
            self._name_arguments(node)
        self._move_inner_join_calls()
        if self.planning.keep_reason is not None:
            self._leave_all(self.planning.keep_reason)
            return
        reason = self._materialise_unstable_sources() or self._whole_select_reason()
        if reason is not None:
            self._leave_all(reason)
            return
        for node in own_calls(self.select):
            if (reason := self._call_reason(node)) is not None:
                self._leave_conjunct(node, reason)
        self._carry_rows(keep_order(self))
        surviving = self._stage_filters()
        self._reuse_filters()
        if self._carry_rows(limit_first(self)):
            surviving = []
        self._stage_others(surviving)
        self._hide_result_columns()

    # -- names --------------------------------------------------------------------------------------------------------

    def _name_outputs(self) -> None:
        """Give a result column that holds a call the call's text as its name, as DuckDB would."""
        for item in self.select.expressions:
            if not isinstance(item, exp.Alias) and calls_in(item):
                item.replace(exp.alias_(item.copy(), call_text(item, self.catalog.dialect), quoted=True))

    def _expand_aliases(self) -> None:
        """Put the expression for each alias of the SELECT list that WHERE or a call's argument uses."""
        aliases = {item.alias.lower(): item for item in self.select.expressions if isinstance(item, exp.Alias)}
        for _ in range(len(aliases)):
            roots: list[exp.Expression] = list(own_calls(self.select))
            if self.select.args.get("where"):
                roots.append(self.select.args["where"])
            used = [
                column
                for root in roots
                for column in root.find_all(exp.Column)
                if not column.table and column.name.lower() in aliases and column.parent_select is self.select
            ]
            used = [column for column in used if column.name.lower() not in self.source_columns()]
            if not used:
                return
            for column in used:
                alias = aliases[column.name.lower()]
                if not any(parent is alias for parent in _ancestors(column)):
                    column.replace(exp.paren(alias.this.copy()))

    def _name_arguments(self, node: exp.Anonymous) -> None:
        """Write each field of a call with its name, stars and structs taken apart; checks the call on the way."""
        parsed = parse_call(node, self.catalog, self._star_columns)
        node.meta[CORRELATED] = not self._arguments_bind(parsed)
        leading = node.expressions[: FUNCTIONS[parsed.call.function].leading]
        options = [argument for argument in node.expressions if isinstance(argument, (exp.PropertyEQ, exp.Kwarg))]
        fields = [exp.alias_(expression.copy(), name, quoted=True) for name, expression in parsed.fields]
        node.set("expressions", [*leading, *fields, *options])

    def _arguments_bind(self, parsed: ParsedCall) -> bool:
        """Whether the arguments are known from this SELECT's own sources; if not, a query around it gives them."""
        if not self._may_be_correlated():
            return True
        if any(argument.find(exp.AggFunc, exp.Window, exp.Query) for argument in parsed.arguments):
            return True  # another reason will be found
        return self.catalog.binds(self._original_source([null_calls(argument) for argument in parsed.arguments]))

    def _may_be_correlated(self) -> bool:
        """Whether a query around this SELECT can give it values: not at the top, in a CTE, or alone in FROM."""
        node: exp.Expression = self.select
        while node.parent is not None:
            if isinstance(node.parent, exp.Select):
                if node.arg_key == "with_":
                    return False
                return not (node.arg_key == "from_" and not node.parent.args.get("joins"))
            node = node.parent
        return False

    def source_columns(self) -> list[str]:
        """The names, in lower case, of the columns of FROM."""
        if self._source_columns is None:
            try:
                found = self.catalog.columns(self._original_source([exp.Star()]))
            except QueryError:
                found = []
            self._source_columns = [name.lower() for name, _ in found]
        return self._source_columns

    def _star_columns(self, star: exp.Expression) -> list[exp.Column]:
        """The columns that `*` or `t.*` stands for, qualified where a name alone would be ambiguous."""
        if isinstance(star, exp.Column):
            found = self.catalog.columns(self._original_source([star.copy()]))
            return [exp.column(name, table=star.args["table"].copy(), quoted=True) for name, _ in found]
        found = self.catalog.columns(self._original_source([star.copy()]))
        if len({name.lower() for name, _ in found}) == len(found):
            return [exp.column(name, quoted=True) for name, _ in found]
        return [
            column
            for source in _sources(self.original)
            for column in self._star_columns(exp.column(exp.Star(), table=exp.to_identifier(source.alias_or_name)))
        ]

    def item_columns(self, item: exp.Expression) -> list[tuple[str, exp.Expression]]:
        """(name, expression) of each result column of an item of the SELECT list; stars are taken apart."""
        if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
            return [(column.name, column) for column in self._star_columns(item)]
        if isinstance(item, exp.Alias):
            return [(item.alias, item.this)]
        return [(self.catalog.columns(self._original_source([null_calls(item)]))[0][0], item)]

    # -- queries over the SELECT's sources ----------------------------------------------------------------------------

    def _original_source(self, projections: list[exp.Expression]) -> exp.Select:
        return _over_sources(self.original, projections, [], visible_ctes(self.original))

    def source_query(self, projections: list[exp.Expression], where: list[exp.Expression]) -> exp.Select:
        """A query over FROM as it is now, joined answers included."""
        return _over_sources(self.select, projections, where, self.planning.ctes)

    # -- what cannot be staged ----------------------------------------------------------------------------------------

    def _materialise_unstable_sources(self) -> str | None:
        """Compute once what would not come out the same twice; a reason when that is not possible."""
        dialect, ctes = self.catalog.dialect, self.planning.ctes
        for cte in ctes:
            reason = instability(cte.this, self.catalog, [other for other in ctes if other is not cte])
            if reason is None:
                continue
            name = self.catalog.fresh_name("source")
            query = _attach_ctes(exp.select("*").from_(exp.to_table(cte.alias)), ctes)
            self.planning.steps.append(Materialise(name, None, query.sql(dialect=dialect), reason))
            cte.set("this", exp.select("*").from_(exp.to_table(name)))
        for source, original in zip(_sources(self.select), _sources(self.original)):
            reason = instability(source, self.catalog, ctes)
            if reason is None:
                continue
            alone = _attach_ctes(exp.select("*").from_(original.copy()), visible_ctes(self.original))
            if len(_sources(self.select)) > 1 and original.find(exp.Query) and not self.catalog.binds(alone):
                return f"a part of FROM depends on another part and cannot be computed once ({reason})"
            name = self.catalog.fresh_name("source")
            query = _attach_ctes(exp.select("*").from_(source.copy()), ctes)
            self.planning.steps.append(Materialise(name, None, query.sql(dialect=dialect), reason))
            table = exp.to_table(name)
            if source.alias_or_name:
                table.set("alias", exp.TableAlias(this=exp.to_identifier(source.alias_or_name, quoted=True)))
            source.replace(table)
        return None

    def _whole_select_reason(self) -> str | None:
        select = self.select
        if select.args.get("sample"):
            return "the SELECT samples its rows"
        if select.find(exp.Columns) is not None:
            return "COLUMNS(...) stands in the SELECT"
        where = select.args.get("where")
        if where is not None:
            for conjunct in _conjuncts(where.this):
                name = None if calls_in(conjunct) else volatile_function(conjunct, self.catalog)
                if name is not None:
                    return f"{name}() in WHERE may choose other rows each time"
        if not self._stands_alone():
            return "the query around it gives it values (a correlated subquery)"
        return None

    def _stands_alone(self) -> bool:
        """Whether the SELECT binds without values from a query around it."""
        if not self._may_be_correlated():
            return True
        alone = self.original.copy()
        alone.set("with_", None)
        return self.catalog.binds(_attach_ctes(alone, visible_ctes(self.original)))

    def _call_reason(self, node: exp.Anonymous) -> str | None:
        if node.meta.get(CORRELATED):
            return "the query around it gives it values (a correlated subquery)"
        place = _place(node, self.select)
        if place in ("from_", "joins", "laterals", "pivots"):
            return "it stands in FROM"
        if place in ("limit", "offset", "windows", "connect"):
            return f"it stands in {place.upper()}"
        for argument in node.expressions:
            if argument.find(exp.Window) is not None:
                return "its arguments need a window function"
            if argument.find(exp.Query) is not None:
                return "its arguments hold a query"
            for function in argument.find_all(exp.Func):
                if isinstance(function, exp.AggFunc) or self.catalog.is_aggregate(function.sql_name()):
                    return "its arguments need an aggregate"
            name = volatile_function(argument, self.catalog)
            if name is not None:
                return f"its arguments need {name}(), which answers anew each time"
        grouping = Grouping(self.select, self.catalog)
        if grouping.has_sets and grouping.is_after_grouping(node):
            return "it stands above GROUPING SETS"
        return None

    def _leave_all(self, reason: str) -> None:
        while calls := own_calls(self.select):
            self._leave(calls[0], reason)

    def _leave_conjunct(self, node: exp.Anonymous, reason: str) -> None:
        """Leave a call in place, and with it the calls inside it and those of its whole WHERE predicate."""
        if not any(parent is self.select for parent in _ancestors(node)):
            return  # already left with another call
        root: exp.Expression = node
        if _place(node, self.select) == "where":
            root = next(c for c in _conjuncts(self.select.args["where"].this) if c is node or _is_above(c, node))
        else:
            for parent in _ancestors(node):
                if parent is self.select:
                    break
                if parent in own_calls(self.select):
                    root = parent
        while inside := [call for call in own_calls(self.select) if call is root or _is_above(root, call)]:
            self._leave(inside[0], reason)

    def _leave(self, node: exp.Anonymous, reason: str) -> None:
        parsed = parse_call(node, self.catalog, self._star_columns)
        self.planning.in_place.append(InPlace(node.meta[TEXT], reason))
        node.replace(in_place_call(parsed, self.planning.in_place_prefix))

    def _move_inner_join_calls(self) -> None:
        """A predicate of an inner join that asks the model is one of WHERE, where it comes after the cheap ones."""
        for join in self.select.args.get("joins") or []:
            condition = join.args.get("on")
            if condition is None or join.side or join.kind not in ("", "INNER") or not calls_in(condition):
                continue
            kept = [conjunct for conjunct in _conjuncts(condition) if not calls_in(conjunct)]
            for conjunct in _conjuncts(condition):
                if calls_in(conjunct):
                    self.select.where(conjunct.copy(), copy=False)
            join.set("on", exp.and_(*kept) if kept else exp.true())

    def split_where(self) -> tuple[list[exp.Expression], list[exp.Expression]]:
        """The predicates of WHERE that ask no model, and those that do, calls left in place included."""
        where = self.select.args.get("where")
        conjuncts = _conjuncts(where.this) if where is not None else []
        asking = [c for c in conjuncts if calls_in(c) or _left_in_place(c)]
        return [c for c in conjuncts if not any(c is a for a in asking)], asking

    # -- stages -------------------------------------------------------------------------------------------------------

    def _stage_filters(self) -> list[exp.Expression]:
        """Stage the calls of WHERE, predicate by predicate; the predicates that later stages can rely on."""
        where = self.select.args.get("where")
        if where is None:
            return []
        surviving, asking = self.split_where()
        rest = [c.copy() for c in [*surviving, *asking] if not calls_in(c)]
        holder = exp.Tuple(expressions=[c.copy() for c in asking if calls_in(c)])
        for index in range(len(holder.expressions)):
            for node in calls_in(holder.expressions[index]):
                self._stage(node, surviving, "WHERE", grouped=False)
            surviving = [*surviving, holder.expressions[index]]
        where.set("this", exp.and_(*rest, *holder.expressions))
        return surviving

    def _carry_rows(self, step: Materialise | None) -> bool:
        if step is not None:
            self.planning.steps.append(step)
        return step is not None

    def _reuse_filters(self) -> None:
        """A call that WHERE asked already has its value; the SELECT list reads the same column."""
        if not self.staged or Grouping(self.select, self.catalog).is_grouped:
            return
        for node in own_calls(self.select):
            if self._key(parse_call(node, self.catalog, self._star_columns)) in self.staged:
                self._stage(node, [], "", grouped=False)

    def _stage_others(self, surviving: list[exp.Expression]) -> None:
        grouping = Grouping(self.select, self.catalog)
        nodes = own_calls(self.select)
        after = {id(node): grouping.is_after_grouping(node) for node in nodes}
        for node in nodes:
            place = _place(node, self.select)
            shown = (
                "the SELECT list"
                if place == "expressions"
                else f"{place.upper()} BY"
                if place in ("group", "order")
                else place.upper()
            )
            self._stage(node, surviving, shown, grouped=after[id(node)])

    def _stage(self, node: exp.Anonymous, where: list[exp.Expression], place: str, *, grouped: bool) -> None:
        """Add the stage for one call, join its result, and put the result's column where the call stood."""
        parsed = parse_call(node, self.catalog, self._star_columns)
        key = self._key(parsed)
        value = self.staged.get(key)
        if value is None:
            value = self._new_stage(node, parsed, where, place)
            self.staged[key] = value
        result: exp.Expression = value.copy()
        if grouped:
            result = exp.Anonymous(this="any_value", expressions=[result])
        node.replace(result)

    def _key(self, parsed: ParsedCall) -> tuple[Call, tuple[str, ...]]:
        named = zip((None,) * (parsed.prompt is not None) + tuple(name for name, _ in parsed.fields), parsed.arguments)
        return parsed.call, tuple(f"{name}: {argument.sql(dialect=self.catalog.dialect)}" for name, argument in named)

    def _new_stage(
        self, node: exp.Anonymous, parsed: ParsedCall, where: list[exp.Expression], place: str
    ) -> exp.Column:
        dialect = self.catalog.dialect
        name = self.catalog.fresh_name("answers")
        columns = tuple(f"a{number}" for number in range(len(parsed.arguments)))
        keys = tuple(f"{name}_{column}" for column in columns)
        projections = [exp.alias_(argument.copy(), column) for argument, column in zip(parsed.arguments, columns)]
        counted = exp.alias_(exp.Count(this=exp.Star()), "n")
        source = self.source_query([*projections, counted], where)
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
        self.planning.steps.append(stage)
        self.result_columns += [*stage.keys, stage.value]
        equal = [
            exp.NullSafeEQ(this=argument.copy(), expression=exp.column(key, table=name))
            for argument, key in zip(parsed.arguments, keys)
        ]
        self._join(exp.to_table(name), exp.and_(*equal))
        return exp.column(stage.value, table=name)

    def _join(self, table: exp.Table, condition: exp.Expression) -> None:
        if self.select.args.get("from_") is None:
            self.select.set("from_", exp.From(this=table))
            return
        for join in self.select.args.get("joins") or []:
            if not (join.kind or join.side or join.method or join.args.get("on") or join.args.get("using")):
                join.set("kind", "CROSS")  # a comma binds weaker than JOIN, and would hide the tables before it
        self.select.append("joins", exp.Join(this=table, side="LEFT", on=condition))

    def _hide_result_columns(self) -> None:
        """A bare star must not show the joined results."""
        for item in self.select.expressions:
            if isinstance(item, exp.Star):
                hidden = [exp.column(name) for name in self.result_columns]
                item.set("except_", [*(item.args.get("except_") or []), *hidden])


def _sources(select: exp.Select) -> list[exp.Expression]:
    found = []
    if select.args.get("from_"):
        found.append(select.args["from_"].this)
    found += [join.this for join in select.args.get("joins") or []]
    return found + list(select.args.get("laterals") or [])


def _over_sources(
    select: exp.Select, projections: list[exp.Expression], where: list[exp.Expression], ctes: list[exp.CTE]
) -> exp.Select:
    query = exp.Select(expressions=projections)
    for part in ("from_", "joins", "laterals"):
        value = select.args.get(part)
        if isinstance(value, list):
            query.set(part, [item.copy() for item in value])
        elif value is not None:
            query.set(part, value.copy())
    if where:
        query.set("where", exp.Where(this=exp.and_(*[conjunct.copy() for conjunct in where])))
    return _attach_ctes(query, ctes)


def _attach_ctes(query: exp.Select, ctes: list[exp.CTE]) -> exp.Select:
    if ctes:
        recursive = any(cte.parent is not None and cte.parent.args.get("recursive") for cte in ctes)
        query.set("with_", exp.With(expressions=[cte.copy() for cte in ctes], recursive=recursive))
    return query


def visible_ctes(select: exp.Expression) -> list[exp.CTE]:
    """The CTEs that `select` can refer to, in an order in which each sees those before it."""
    found: dict[str, exp.CTE] = {}
    chain: list[exp.Expression] = [select, *_ancestors(select)]
    for inner, outer in reversed(list(zip([None, *chain], chain))):
        with_ = outer.args.get("with_") if not isinstance(outer, exp.With) else None
        if with_ is None or inner is with_:
            continue
        for cte in with_.expressions:
            found[cte.alias.lower()] = cte
    for outer in chain:
        if isinstance(outer, exp.CTE) and isinstance(outer.parent, exp.With):
            siblings = outer.parent.expressions
            for cte in siblings[: next(i for i, sibling in enumerate(siblings) if sibling is outer)]:
                found.setdefault(cte.alias.lower(), cte)
    return list(found.values())


def _conjuncts(condition: exp.Expression) -> list[exp.Expression]:
    unnested = condition.unnest()
    if isinstance(unnested, exp.And):
        return [*_conjuncts(unnested.left), *_conjuncts(unnested.right)]
    return [condition]


def _left_in_place(expression: exp.Expression) -> bool:
    return any(str(node.this).startswith(IN_PLACE_PREFIX) for node in expression.find_all(exp.Anonymous))


def _place(node: exp.Expression, select: exp.Select) -> str:
    """The clause of the SELECT in which a node stands."""
    while node.parent is not None and node.parent is not select:
        node = node.parent
    return node.arg_key or ""


def _ancestors(node: exp.Expression) -> list[exp.Expression]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def _is_above(node: exp.Expression, below: exp.Expression) -> bool:
    return any(parent is node for parent in _ancestors(below))
