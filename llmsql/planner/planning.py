"""What the SELECTs of one statement share while they are planned."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlglot import exp

from llmsql.functions import FUNCTIONS
from llmsql.planner.calls import ParsedCall
from llmsql.planner.catalog import Catalog
from llmsql.planner.plan import Filters, InPlace, Materialise, Stage

IN_PLACE_PREFIX = "__llmsql_"
# Notes on nodes:
TAG = "llmsql_select"  # which SELECT it is
TEXT = "llmsql_text"  # the call as the user wrote it
CORRELATED = "llmsql_correlated"  # a query around the SELECT gives the call's arguments values
TYPE = "llmsql_type"  # of the call's value
INFERRED = "llmsql_inferred"  # the type or choices that the call's place in the statement gave it, and why
ANY_ORDER = "llmsql_any_order"  # a SELECT whose rows come in any order
SAME_IN_GROUP = "llmsql_same_in_group"  # any_value() around an answer that is the same in all rows of a group


@dataclass(frozen=True)
class Switches:
    """What the planner does to ask less; see `llmsql.settings.Settings`."""

    short_circuit: bool = True
    order_filters: bool = True
    early_stop: bool = True
    infer_types: bool = True


@dataclass
class Planning:
    """The plan of a statement as it grows.

    `ctes` are the CTEs that the SELECT at hand can see, as they are now; `originals` maps the tag of each SELECT to a
    copy of it in which every call is a NULL of its type, so that it can be bound before any stage has run.
    `keep_reason`: why every call of the statement stays in place, if so; `in_place_prefix`: of the functions for those.
    """

    catalog: Catalog
    keep_reason: str | None = None
    switches: Switches = Switches()
    in_place_prefix: str = IN_PLACE_PREFIX
    steps: list[Stage | Materialise | Filters] = field(default_factory=list)
    in_place: list[InPlace] = field(default_factory=list)
    ctes: list[exp.CTE] = field(default_factory=list)
    originals: dict[int, exp.Select] = field(default_factory=dict)
    collates: bool = False  # COLLATE stands in the statement

    @property
    def by_bytes(self) -> bool:
        """Whether arguments must be compared by their bytes; see `llmsql.planner.exact`."""
        return self.collates or self.catalog.has_collations()

    def note_originals(self, statement: exp.Expression) -> None:
        """Number the SELECTs of a statement, and keep a copy of each as it is now."""
        for number, select in enumerate(statement.find_all(exp.Select)):
            select.meta[TAG] = number
        self.collates = statement.find(exp.Collate) is not None
        self.originals = {found.meta[TAG]: found for found in null_calls(statement).find_all(exp.Select)}
        for select in statement.find_all(exp.Select):  # those in the arguments of calls
            self.originals.setdefault(select.meta[TAG], null_calls(select))


def null_calls(expression: exp.Expression) -> exp.Expression:
    """A copy in which each LLM call is a NULL of the call's type."""

    def null(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Anonymous) and node.name.lower() in FUNCTIONS:
            return exp.cast(exp.null(), call_type(node), dialect="duckdb")
        return node

    return expression.transform(null)


def in_place_call(parsed: ParsedCall, prefix: str) -> exp.Expression:
    """The call as a UDF that knows its fields' names: (call as JSON, prompt or NULL, fields as a struct)."""
    fields = [
        exp.PropertyEQ(this=exp.to_identifier(name, quoted=True), expression=expression.copy())
        for name, expression in parsed.fields
    ]
    call: exp.Expression = exp.Anonymous(
        this=prefix + parsed.call.function,
        expressions=[
            exp.Literal.string(parsed.call.to_json()),
            parsed.prompt.copy() if parsed.prompt is not None else exp.null(),
            exp.Struct(expressions=fields),
        ],
    )
    if parsed.call.sql_type == FUNCTIONS[parsed.call.function].sql_type:
        return call
    if parsed.call.value_type.is_json:  # a type of the call's own comes as text
        call = exp.cast(call, "JSON", dialect="duckdb")
    return exp.cast(call, parsed.call.sql_type, dialect="duckdb")


def call_type(node: exp.Anonymous) -> str:
    """The SQL type of a call's value; `note_types` has noted those that options give."""
    return str(node.meta.get(TYPE) or FUNCTIONS[node.name.lower()].sql_type)


def is_left_in_place(expression: exp.Expression) -> bool:
    """Whether a call in the expression was left in place."""
    return any(str(node.this).startswith(IN_PLACE_PREFIX) for node in expression.find_all(exp.Anonymous))
