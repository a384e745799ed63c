"""What a statement has asked so far, in temporary tables, so that nothing is asked twice wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmsql.planner import Stage

Run = Callable[..., list[tuple[Any, ...]]]


@dataclass
class AnswerTable:
    """The argument tuples of one call, each with an id, and the values answered to them.

    `tuples` has the columns id, a0, a1, ... and n, the rows behind a tuple; `values` the columns id and value.
    `size`: tuples in it, with the ids 0 to size - 1.
    """

    name: str
    columns: tuple[str, ...]
    size: int = 0
    types: tuple[str, ...] | None = None

    @property
    def tuples(self) -> str:
        """The table of the argument tuples."""
        return f"{self.name}_asked"

    @property
    def values(self) -> str:
        """The table of the values."""
        return f"{self.name}_values"


@dataclass
class Wanted:
    """What one run of a stage wants: rows behind its tuples, the tuples, and where in the table the new ones start."""

    table: AnswerTable
    rows: int
    distinct: int
    start: int


@dataclass
class AnswerTables:
    """The answers of one statement. Stages with equal calls, field names and argument types share a table.

    Args:
        run: runs SQL that the runner made; run_with_parameters: SQL that may hold the statement's parameters.
        scratch: (kind, name) of every relation made is added here.
        shared: off gives each stage a table of its own.
        ordered: new tuples are numbered in an order that is the same each time.
    """

    run: Run
    run_with_parameters: Callable[[str], Any]
    scratch: list[tuple[str, str]]
    shared: bool
    ordered: bool
    _tables: dict[object, list[AnswerTable]] = field(default_factory=dict)
    _by_stage: dict[str, AnswerTable] = field(default_factory=dict)

    def add(self, stage: Stage) -> Wanted:
        """Compute a stage's input and number the tuples in it that nobody asked about yet."""
        key = (stage.call, stage.fields) if self.shared else stage.name
        known = self._tables.setdefault(key, [])
        if not known:
            table = self._create(stage, f"({stage.input_sql})")
            known.append(table)
            rows = self.run(f"SELECT coalesce(sum(n), 0)::BIGINT FROM {table.tuples}", {})[0][0]
            return Wanted(table, rows, table.size, 0)
        more = f"{stage.name}_more"
        self.run_with_parameters(f"CREATE TEMP TABLE {more} AS {stage.input_sql}")
        try:
            found = self._among(known, self._types(more, stage.columns))
            rows, distinct = self.run(f"SELECT coalesce(sum(n), 0)::BIGINT, count(*) FROM {more}", {})[0]
            if found is None:
                table = self._create(stage, more)
                known.append(table)
                return Wanted(table, rows, distinct, 0)
            start = found.size
            self._extend(found, more)
            self._show(stage, found)
            return Wanted(found, rows, distinct, start)
        finally:
            self.run(f"DROP TABLE {more}", {})

    def table_of(self, stage: Stage) -> AnswerTable:
        """Where the answers of a stage are, which ran before."""
        return self._by_stage[stage.name]

    def missing(self, stage: Stage) -> int:
        """How many tuples of the stage's input, as it is now, nobody asked about yet; the stage ran before."""
        table = self._by_stage[stage.name]
        condition = same_tuple(table.columns, self.types_of(table))
        sql = f"SELECT count(*) FROM ({stage.input_sql}) q ANTI JOIN {table.tuples} p ON {condition}"
        return int(self.run_with_parameters(sql)[0][0])

    def mean_length(self, stage: Stage) -> float:
        """The mean length, in characters, of the first thousand tuples that were asked."""
        table = self._by_stage[stage.name]
        lengths = " + ".join(f"coalesce(length(CAST({column} AS VARCHAR)), 0)" for column in table.columns)
        mean = self.run(f"SELECT avg({lengths}) FROM {table.tuples} WHERE id < 1000", {})[0][0]
        return float(mean or 0)

    def _create(self, stage: Stage, source: str) -> AnswerTable:
        """A table with all tuples of `source`, under the stage's name."""
        table = AnswerTable(stage.name, stage.columns)
        self.run_with_parameters(
            f"CREATE TEMP TABLE {table.tuples} AS SELECT row_number() OVER () - 1 AS id, * "
            f"FROM (SELECT * FROM {source}{self._order(stage.columns)})"
        )
        self.scratch.append(("TABLE", table.tuples))
        self.run(f"CREATE TEMP TABLE {table.values} (id BIGINT, value {stage.call.sql_type})", {})
        self.scratch.append(("TABLE", table.values))
        self._count(table)
        self._show(stage, table)
        return table

    def _extend(self, table: AnswerTable, source: str) -> None:
        """Add the tuples of `source` that the table does not have."""
        same = same_tuple(table.columns, self.types_of(table))
        self.run(
            f"INSERT INTO {table.tuples} SELECT {table.size} + row_number() OVER () - 1, * FROM (SELECT q.* "
            f"FROM {source} q ANTI JOIN {table.tuples} p ON {same}{self._order(table.columns)})",
            {},
        )
        self._count(table)

    def _show(self, stage: Stage, table: AnswerTable) -> None:
        """The relation of the stage's answers, which the statement joins."""
        if stage.name in self._by_stage:
            return
        self._by_stage[stage.name] = table
        keys = ", ".join(f"q.{column} AS {key}" for column, key in zip(stage.columns, stage.keys))
        self.run(
            f"CREATE TEMP VIEW {stage.name} AS SELECT {keys}, v.value AS {stage.value} "
            f"FROM {table.tuples} q JOIN {table.values} v USING (id)",
            {},
        )
        self.scratch.append(("VIEW", stage.name))

    def _order(self, columns: tuple[str, ...]) -> str:
        # Groups come in any order. The optimizer breaks ties by it, so a fixed order makes its choice, and with it the
        # answers, the same each time.
        return f" ORDER BY hash({', '.join(columns)})" if self.ordered else ""

    def _count(self, table: AnswerTable) -> None:
        table.size = self.run(f"SELECT count(*) FROM {table.tuples}", {})[0][0]

    def _among(self, known: list[AnswerTable], types: tuple[str, ...]) -> AnswerTable | None:
        """The table whose arguments have these types: texts and numbers that look alike are shown differently."""
        return next((table for table in known if self.types_of(table) == types), None)

    def types_of(self, table: AnswerTable) -> tuple[str, ...]:
        """The SQL types of the arguments in a table."""
        if table.types is None:
            table.types = self._types(table.tuples, table.columns)
        return table.types

    def _types(self, relation: str, columns: tuple[str, ...]) -> tuple[str, ...]:
        described = {row[0]: row[1] for row in self.run(f"DESCRIBE {relation}", {})}
        return tuple(described[column] for column in columns)


def same_tuple(columns: tuple[str, ...], types: tuple[str, ...]) -> str:
    """The condition that tuples q and p are the same, NULLs included; texts by their bytes, also with a collation."""
    same = []
    for column, kind in zip(columns, types):
        if kind != "VARCHAR":
            same.append(f"q.{column} IS NOT DISTINCT FROM p.{column}")
        if "VARCHAR" in kind:
            left, right = (f"encode(CAST({side}.{column} AS VARCHAR))" for side in "qp")
            same.append(f"{left} IS NOT DISTINCT FROM {right}")
    return " AND ".join(same)
