"""One SELECT while it is planned: its columns, its calls, and queries over its FROM."""

from __future__ import annotations

from sqlglot import exp

from llmsql.errors import QueryError
from llmsql.planner.calls import ParsedCall, calls_in, own_calls, parse_call
from llmsql.planner.clauses import attach_ctes, conjuncts, is_star, over_sources, sources, visible_ctes
from llmsql.planner.planning import TAG, Planning, is_left_in_place, null_calls


class Scope:
    """A SELECT, the copy of it that binds before any stage has run, and what the SQL engine knows of both."""

    def __init__(self, select: exp.Select, planning: Planning):
        self.select = select
        self.planning = planning
        self.catalog = planning.catalog
        self.original = planning.originals[select.meta[TAG]]
        self._source_columns: list[str] | None = None

    def calls(self) -> list[exp.Anonymous]:
        """The calls of the SELECT itself, inner before outer."""
        return own_calls(self.select)

    def parse(self, node: exp.Anonymous) -> ParsedCall:
        """Take a call apart; see `parse_call`."""
        return parse_call(node, self.catalog, self.star_columns)

    def split_where(self) -> tuple[list[exp.Expression], list[exp.Expression]]:
        """The predicates of WHERE that ask no model, and those that do, calls left in place included."""
        where = self.select.args.get("where")
        predicates = conjuncts(where.this) if where is not None else []
        asking = [c for c in predicates if calls_in(c) or is_left_in_place(c)]
        return [c for c in predicates if not any(c is a for a in asking)], asking

    def source_columns(self) -> list[str]:
        """The names, in lower case, of the columns of FROM."""
        if self._source_columns is None:
            try:
                found = self.catalog.columns(self.original_source([exp.Star()]))
            except QueryError:
                found = []
            self._source_columns = [name.lower() for name, _ in found]
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
        return [(self.catalog.columns(self.original_source([null_calls(item)]))[0][0], item)]

    def original_source(self, projections: list[exp.Expression]) -> exp.Select:
        """A query over FROM as the user wrote it; it binds before any stage has run."""
        return over_sources(self.original, projections, [], visible_ctes(self.original))

    def source_query(self, projections: list[exp.Expression], where: list[exp.Expression]) -> exp.Select:
        """A query over FROM as it is now, joined answers included."""
        return over_sources(self.select, projections, where, self.planning.ctes)

    def arguments_bind(self, parsed: ParsedCall) -> bool:
        """Whether the arguments are known from this SELECT's own sources; if not, a query around it gives them."""
        if not self.may_be_correlated():
            return True
        if any(argument.find(exp.AggFunc, exp.Window, exp.Query) for argument in parsed.arguments):
            return True  # another reason will be found
        return self.catalog.binds(self.original_source([null_calls(argument) for argument in parsed.arguments]))

    def may_be_correlated(self) -> bool:
        """Whether a query around this SELECT can give it values: not at the top, in a CTE, or alone in FROM."""
        node: exp.Expression = self.select
        while node.parent is not None:
            if isinstance(node.parent, exp.Select):
                if node.arg_key == "with_":
                    return False
                return not (node.arg_key == "from_" and not node.parent.args.get("joins"))
            node = node.parent
        return False

    def stands_alone(self) -> bool:
        """Whether the SELECT binds without values from a query around it."""
        if not self.may_be_correlated():
            return True
        alone = self.original.copy()
        alone.set("with_", None)
        return self.catalog.binds(attach_ctes(alone, visible_ctes(self.original)))
