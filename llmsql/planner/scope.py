"""One SELECT while it is planned: its columns, its calls, and queries over its FROM."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.planner.calls import ParsedCall, calls_in, own_calls, parse_call
from llmsql.planner.clauses import ancestors, attach_ctes, conjuncts, is_star, over_sources, sources, visible_ctes
from llmsql.planner.hazards import holds_or_raises, is_true, may_raise
from llmsql.planner.planning import TAG, TEXT, Planning, is_left_in_place, null_calls


@dataclass(frozen=True)
class WhereParts:
    """The predicates of WHERE, by when they can be evaluated.

    cheap: without calls; tried: conditions without calls that are true where a predicate of `rest` holds or raises;
    asking: with calls; rest: with calls left in place, or such as could raise for rows that a call written before them
    would have dropped.
    """

    cheap: list[exp.Expression]
    tried: list[exp.Expression]
    asking: list[exp.Expression]
    rest: list[exp.Expression]

    @property
    def first(self) -> list[exp.Expression]:
        """What chooses the rows that calls see."""
        return [*self.cheap, *self.tried]


class Scope:
    """A SELECT, the copy of it that binds before any stage has run, and what the SQL engine knows of both."""

    def __init__(self, select: exp.Select, planning: Planning):
        self.select = select
        self.planning = planning
        self.catalog = planning.catalog
        self.original = planning.originals[select.meta[TAG]]
        self.carried: dict[str, exp.Expression] = {}  # column of a scratch table: what it was in the user's FROM
        self.answers: dict[str, str] = {}  # relations of answers that were joined to FROM, with the answers' types
        self._source_columns: list[tuple[str, str]] | None = None

    def calls(self) -> list[exp.Anonymous]:
        """The calls of the SELECT itself, inner before outer."""
        return own_calls(self.select)

    def parse(self, node: exp.Anonymous) -> ParsedCall:
        """Take a call apart; see `parse_call`."""
        return parse_call(node, self.catalog, self.star_columns)

    def user_text(self, expression: exp.Expression) -> str:
        """The expression as the user wrote it, or nearly so."""

        def written(node: exp.Expression) -> exp.Expression:
            if node.meta.get(TEXT):
                return exp.Var(this=node.meta[TEXT])
            return self._carried_from(node) if isinstance(node, exp.Column) else node

        return str(expression.transform(written).sql(dialect=self.catalog.dialect))

    def split_where(self) -> WhereParts:
        """The predicates of WHERE; see `WhereParts`."""
        where = self.select.args.get("where")
        parts = WhereParts([], [], [], [])
        for predicate in conjuncts(where.this) if where is not None else []:
            if calls_in(predicate):
                parts.asking.append(predicate)
            elif is_left_in_place(predicate):
                parts.rest.append(predicate)
            elif (
                (parts.asking or parts.rest)
                and not joins_sources(predicate)
                and may_raise(_without_queries(predicate), self.is_text)
            ):
                parts.rest.append(predicate)
                if predicate.find(exp.Query) is None:
                    parts.tried.append(self.holds_or_raises(is_true(predicate.copy())))
            else:
                parts.cheap.append(predicate)
        return parts

    def repeatable_conditions(self) -> list[exp.Expression]:
        """The predicates of WHERE that another query over FROM may have, too: no call or query in them, none raises."""
        where = self.select.args.get("where")
        return [
            condition
            for condition in (conjuncts(where.this) if where is not None else [])
            if not calls_in(condition) and condition.find(exp.Query) is None and not may_raise(condition, self.is_text)
        ]

    def source_columns(self) -> list[str]:
        """The names, in lower case, of the columns of FROM."""
        return [name.lower() for name, _ in self._described_source()]

    def column_type(self, column: exp.Column) -> str | None:
        """The SQL type of a column of FROM; None where it is not known, or several columns are called so."""
        kinds = {kind for name, kind in self._described_source() if name.lower() == column.name.lower()}
        return kinds.pop() if len(kinds) == 1 else None

    def is_text(self, column: exp.Expression) -> bool | None:
        """Whether a column of FROM, an answer or a parameter holds texts; None when that is not known."""
        if isinstance(column, exp.Placeholder):
            return isinstance(self.catalog.constant(column), str)
        if isinstance(column, exp.Column) and column.table in self.answers:
            return not self.answers[column.table].startswith(NUMBERS_AND_DATES)
        original = self._carried_from(column)
        if not isinstance(original, exp.Column):
            return None
        name = original.name.lower()
        # Columns that are called the same have _1, _2, ... after their names here; they may agree in what they hold.
        alike = re.compile(re.escape(name) + r"(_\d+)?")
        held = {
            not kind.startswith(NUMBERS_AND_DATES)
            for other, kind in self._described_source()
            if alike.fullmatch(other.lower())
        }
        return held.pop() if len(held) == 1 else None

    def holds_or_raises(self, condition: exp.Expression) -> exp.Expression:
        """See `llmsql.planner.hazards.holds_or_raises`."""
        return holds_or_raises(condition, self.is_text, self.catalog.attempt)

    def _carried_from(self, column: exp.Expression) -> exp.Expression:
        """What a column of a scratch table was in the user's FROM."""
        while (was := self.carried.get(column.sql(dialect=self.catalog.dialect))) is not None:
            column = was
        return column

    def _described_source(self) -> list[tuple[str, str]]:
        if self._source_columns is None:
            try:
                found = self.catalog.columns(self.original_source([exp.Star()]))
            except QueryError:
                found = []
            self._source_columns = found
        return self._source_columns

    def star_columns(self, star: exp.Expression) -> list[exp.Column]:
        """The columns that `*` or `t.*` stands for, qualified where a name alone would be ambiguous."""
        found = self.catalog.columns(self.original_source([star.copy()]))
        if isinstance(star, exp.Column):
            return [exp.column(name, table=star.args["table"].copy(), quoted=True) for name, _ in found]
        if len({name.lower() for name, _ in found}) == len(found):
            return [exp.column(name, quoted=True) for name, _ in found]
        return [
            column
            for source in sources(self.original)
            for column in self.star_columns(exp.column(exp.Star(), table=exp.to_identifier(source.alias_or_name)))
        ]

    def item_columns(self, item: exp.Expression) -> list[tuple[str, exp.Expression]]:
        """(name, expression) of each result column of an item of the SELECT list; stars are taken apart."""
        if is_star(item):
            return [(column.name, column) for column in self.star_columns(item)]
        if isinstance(item, exp.Alias):
            return [(item.alias, item.this)]
        if isinstance(item, exp.Column):
            named = [name for name, _ in self._described_source() if name.lower() == item.name.lower()]
            if len(named) == 1:
                return [(named[0], item)]
        return [(self.catalog.columns(self.original_source([null_calls(item)]))[0][0], item)]

    def original_source(self, projections: list[exp.Expression]) -> exp.Select:
        """A query over FROM as the user wrote it; it binds before any stage has run."""
        return over_sources(self.original, projections, [], visible_ctes(self.original))

    def source_query(self, projections: list[exp.Expression], where: list[exp.Expression]) -> exp.Select:
        """A query over FROM as it is now, with the joined answers that it needs."""
        query = over_sources(self.select, projections, where, self.planning.ctes)
        needed = {column.table for part in (*projections, *where) for column in part.find_all(exp.Column)}
        for join in reversed(query.args.get("joins") or []):  # a later one may need an earlier one
            if join.this.name not in self.answers or join.this.name in needed:
                needed |= {column.table for column in join.find_all(exp.Column)}
            else:
                join.pop()
        return query

    def row_count(self) -> exp.Expression:
        """How many rows are behind a row of a grouped query over FROM."""
        return exp.Count(this=exp.Star())

    def arguments_bind(self, parsed: ParsedCall) -> bool:
        """Whether the arguments are known from this SELECT's own sources; if not, a query around it gives them."""
        if not self.may_be_correlated() or self._names_its_own():
            return True
        if any(argument.find(exp.AggFunc, exp.Window, exp.Query) for argument in parsed.arguments):
            return True  # another reason will be found
        return self.catalog.binds(self.original_source([null_calls(argument) for argument in parsed.arguments]))

    def may_be_correlated(self) -> bool:
        """Whether a query around this SELECT can give it values: not at the top, in its WITH, or alone in its FROM."""
        node: exp.Expression = self.select
        while node.parent is not None:
            if isinstance(node.parent, exp.Select):
                alone = node.arg_key == "from_" and not node.parent.args.get("joins")
                if node.arg_key != "with_" and not alone:
                    return True
            node = node.parent
        return False

    def stands_alone(self) -> bool:
        """Whether the SELECT binds without values from a query around it."""
        if not self.may_be_correlated() or self._names_its_own():
            return True
        return self.catalog.binds(self.alone())

    def alone(self) -> exp.Select:
        """The SELECT as the user wrote it, as a statement of its own."""
        alone = self.original.copy()
        alone.set("with_", None)
        return attach_ctes(alone, visible_ctes(self.original))

    def _names_its_own(self) -> bool:
        """Whether all columns are certain to be of this SELECT's own tables, so that nothing need be bound to know."""
        own = {source.alias_or_name.lower() for source in sources(self.original)}
        around = [outer for outer in ancestors(self.original) if isinstance(outer, exp.Select)]
        if own & {source.alias_or_name.lower() for outer in around for source in sources(outer)}:
            return False
        if not all(
            isinstance(one, exp.Table) and isinstance(one.this, exp.Identifier) for one in sources(self.original)
        ):
            return False
        if not own or len(list(self.select.find_all(exp.Select))) > 1:
            return False
        columns = [column for column in self.select.find_all(exp.Column) if column.table.lower() not in own]
        if any(column.table or column.find_ancestor(exp.Join) for column in columns):
            return False
        return {column.name.lower() for column in columns} <= set(self.source_columns() if columns else ())


NUMBERS_AND_DATES = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "DATE", "TIME"),
)


def joins_sources(predicate: exp.Expression) -> bool:
    """Whether the predicate equates columns of two sources: the SQL engine joins by it before all else."""
    if not isinstance(predicate, exp.EQ):
        return False
    sides = [side.unnest() for side in (predicate.left, predicate.right)]
    return all(isinstance(side, exp.Column) and side.table for side in sides) and sides[0].table != sides[1].table


def _without_queries(predicate: exp.Expression) -> exp.Expression:
    """The predicate with a column for each query in it; a query is computed anyway, for no row of this SELECT."""
    alone = exp.paren(predicate.copy())
    for query in list(alone.find_all(exp.Query)):
        if isinstance(query.parent, exp.In):
            query.parent.replace(query.parent.this)
        elif isinstance(query.parent, exp.Exists):
            query.parent.replace(exp.true())
        else:
            query.replace(exp.true())
    return alone
