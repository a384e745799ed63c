"""Random statements over tables with columns of many types, with all functions and many forms of arguments."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

from planner_fuzz import Statements

COLUMNS = """range::INTEGER AS id, (range % {k})::INTEGER AS k,
    CASE WHEN range % 7 = 0 THEN NULL
        ELSE ['a' || range % 6, '', 'ä "1"', 'it''s'][1 + greatest(range % 8 - 4, 0)] END AS s,
    CASE WHEN range % 9 = 4 THEN NULL ELSE (range * 7 % 11)::INTEGER END AS n,
    CASE WHEN range % 4 = 1 THEN NULL ELSE (range * 3 % 7 * 1.25)::DECIMAL(8, 2) END AS price,
    (range % 6)::DOUBLE / 4 AS ratio, DATE '2024-01-30' + (range % 4)::INTEGER AS day,
    CASE WHEN range % 5 = 2 THEN NULL
        ELSE TIMESTAMP '2024-01-01 10:00:00' + (range % 3)::INTEGER * INTERVAL 1 HOUR END AS moment,
    CASE WHEN range % 3 = 0 THEN NULL ELSE range % 2 = 0 END AS ok,
    CASE WHEN range % 8 = 3 THEN NULL ELSE ['t' || range % 3, 'é'] END AS tags,
    CASE WHEN range % 6 = 5 THEN NULL
        ELSE {{'name': ['', 'x', NULL, 'Ünï'][1 + range % 4], 'size': (range % 3)::INTEGER}} END AS rec,
    CASE WHEN range % 4 = 2 THEN 'n/a' ELSE (range % 9)::VARCHAR END AS u"""
SETUP = f"""
CREATE TABLE a AS SELECT {COLUMNS.format(k=5)} FROM range(40);
CREATE TABLE b AS SELECT {COLUMNS.format(k=4)} FROM range(3, 28);
CREATE TABLE c AS SELECT {COLUMNS.format(k=3)} FROM range(7, 19);
CREATE VIEW v AS SELECT * FROM a WHERE n > 2;
CREATE TABLE nothing AS SELECT * FROM a WHERE false;
"""
OTHERS = ("price", "ratio", "day", "moment", "ok", "tags", "rec", "u")
TABLES = ("a", "b", "c", "v", "nothing")
IS_NUMBER = "Is it a number?"


def reply(prompt: str, fields: dict[str, object], options: dict[str, object]) -> str:
    """A pure function of the values, whatever their names and order; some are of no declared type."""
    texts = sorted(map(str, fields.values()))
    code = zlib.crc32(repr((prompt, texts)).encode())
    if prompt == IS_NUMBER:
        return "Yes" if all(text.isdigit() for text in texts) else "No"
    kind = str(options.get("return_type"))
    if "choices" in options:
        return options["choices"][code % len(options["choices"])]  # type: ignore[index]
    if code % 11 == 0 and kind != "None":
        return "nothing of the kind"
    if kind.startswith("STRUCT"):
        return json.dumps({"year": code % 7, "about": None if code % 5 == 0 else f"about {code % 4}"})
    if kind.endswith("[]"):
        return json.dumps([f"item {code % 3}", "é"])
    if kind == "DATE":
        return f"2024-02-0{1 + code % 9}"
    return str(code % 10) if kind != "None" or options["function"] == "llm_score" else f"{prompt[:5]}{code % 50}"


class TypedStatements(Statements):
    """Queries that DuckDB and Spark both have, in DuckDB's words.

    `is_ordered`: the order of the last one's rows counts.
    """

    others = "".join(f", {name}" for name in OTHERS)
    set_operations = ("UNION ALL", "UNION", "INTERSECT", "EXCEPT", "EXCEPT ALL", "INTERSECT ALL")

    def statement(self) -> str:
        shapes: list[tuple[Callable[[], str], int]] = [(self.query, 8), (self.grouped, 4), (self.set_operation, 3)]
        shapes += [(self.cte, 3), (self.windows, 3), (self.distinct_on, 1), (self.lateral, 2), (self.values, 1)]
        shapes += [(self.exploded, 2), (self.collected, 3), (self.guarded, 2), (self.used_twice, 3), (self.starred, 2)]
        shapes += [(self.over_groups, 3), (self.named, 2), (self.in_parts, 2), (self.deep, 2)]
        self.is_ordered = False
        text = self.random.choices([shape for shape, _ in shapes], [weight for _, weight in shapes])[0]()
        return text.replace(", model := 'fast'", "")

    # -- statements ---------------------------------------------------------------------------------------------------

    def query(self) -> str:
        text = super().query()
        self.is_ordered = " ORDER BY " in text.rsplit(")", 1)[-1]
        return text

    def exploded(self) -> str:
        """A row for each item of a list."""
        where = self.where(["x"])
        items = [self.item(["x"]), f"llm('Item', e.tag{self.one_of('', ', x.s', ', x.id')})", "e.tag"]
        more = self.one_of("", f" {'AND' if where else 'WHERE'} llm_filter('Good?', e.tag, x.k)")
        return self.select(items, "a x CROSS JOIN unnest(x.tags) AS e(tag)", where + more)

    def collected(self) -> str:
        """llm_agg, with all that aggregates have."""
        field = self.one_of(
            "x.s", "x.s", "x.n", "x.day", "upper(x.u) AS big", "x.s, x.k", "x.rec", "x.tags", "x.price AS p"
        )
        order = self.one_of("x.id", "x.n DESC NULLS LAST, x.id", "x.s NULLS FIRST, x.id", f"{self.call(['x'])}, x.id")
        call = f"llm_agg('Sum', {field} ORDER BY {order})"
        if self.chance(0.2):
            first = field.split(",")[0].split(" AS ")[0]
            call = f"llm_agg(DISTINCT 'Sum', {first} ORDER BY {first} {self.one_of('', 'DESC')} NULLS LAST)"
        if self.chance(0.3):
            call += f" FILTER (WHERE {self.one_of(self.plain(['x']), self.asking(['x']))})"
        where = self.where(["x"])
        source = self.one_of("a x", "a x", f"({self.rows('r')}) x", "nothing x")
        kind = self.random.random()
        if kind < 0.2:
            return self.select(["x.id", f"{call} OVER (PARTITION BY x.k)"], source, where)
        if kind < 0.4:
            return self.select([call, "count(*)"], source, where)
        key = self.one_of("x.k", "x.k", "x.ok", self.call(["x"]), self.asking(["x"]))
        items = [key, self.one_of(call, f"llm('Over', {call} AS agg)", f"upper({call})")]
        having = self.one_of("", "", " HAVING count(*) > 3", f" HAVING length({call}) > 4")
        return self.select(items, source, where) + f" GROUP BY {key}{having}"

    def guarded(self) -> str:
        """Expressions that raise for rows which something before them leaves out."""
        number = self.one_of("CAST(x.u AS INTEGER)", "CAST(x.u AS INTEGER) + x.k", "CAST(x.u AS DOUBLE)")
        sure = f"llm_filter('{IS_NUMBER}', x.u)"
        certain = self.one_of(sure, sure, "x.u <> 'n/a'")
        case = f"CASE WHEN {certain} THEN "
        source, _ = self.one_of(("a x", 1), ("a x", 1), (f"({self.rows('r')}) x", 1))
        kind = self.random.random()
        if kind < 0.4:
            conditions = [sure, f"{number} > {self.random.randint(0, 5)}"]
            conditions.insert(self.random.randint(0, 2), self.predicate(["x"]))
            conditions.sort(key=lambda one: "CAST(x.u" in one)
            if self.chance(0.3):
                conditions.append(f"llm_filter('Good?', {number} AS number)")
            return self.select(["x.id", self.item(["x"])], source, " WHERE " + " AND ".join(conditions))
        if kind < 0.7:
            item = self.one_of(
                f"{number} END", f"llm('Of', {number} AS number) END", f"llm('Of', x.s, {number}) ELSE 'e' END"
            )
            return self.select(["x.id", case + item], source, self.where(["x"]))
        item = f"max({case}{number} END)"
        return (
            self.select(["x.k", item], source, f" WHERE x.u <> 'n/a' AND llm_filter('Good?', {number} AS m)")
            + " GROUP BY x.k"
        )

    def used_twice(self) -> str:
        """A CTE with calls that is read twice, or a subquery that is written twice."""
        items = f"x.id, x.k, {self.text(['x'])} AS t, {self.asking(['x'])} AS q, x.s"
        inner = f"SELECT {items} FROM {self.table('x')} x{self.where(['x'])}"
        bodies = [
            "SELECT * FROM w1 UNION ALL SELECT * FROM w1 WHERE q",
            "SELECT l.id, r.t FROM w1 l JOIN w1 r ON l.k = r.k AND l.id < r.id WHERE l.q",
            "SELECT l.t, count(*) AS c FROM w1 l GROUP BY l.t HAVING count(*) >= (SELECT min(i.k) FROM w1 i WHERE i.q)",
            "SELECT l.id FROM w1 l WHERE l.t IN (SELECT i.t FROM w1 i WHERE i.q) AND NOT l.q",
            "SELECT l.id, llm('Again', l.t) AS u FROM w1 l LEFT JOIN w1 r ON l.id = r.id + 1 AND r.q WHERE l.q",
            "SELECT id, t FROM w1 EXCEPT SELECT id, t FROM w1 WHERE NOT q",
            "SELECT l.id, (SELECT max(i.t) FROM w1 i WHERE i.k = l.k AND i.q) AS m FROM w1 l WHERE llm_filter('P', t)",
        ]
        return f"WITH w1 AS ({inner}) {self.random.choice(bodies)}"

    def starred(self) -> str:
        source, names = self.one_of(
            ("a x", ["x"]), ("a x JOIN b y USING (id)", ["x", "y"]), ("a x LEFT JOIN c y USING (id, k)", ["x", "y"])
        )
        star = self.one_of("*", "x.*", "* EXCLUDE (s)" if len(names) == 1 else "x.*")
        call = self.one_of(self.text(names), self.asking(names))
        where = self.where(names)
        return f"SELECT {star}, {call} AS c0 FROM {source}{where}"

    def over_groups(self) -> str:
        """Calls on groups, also on those of a subquery and of sets."""
        q = "x"
        aggregate = self.one_of(
            "count(*)", "sum(x.n)", "max(x.s)", "min(x.day)", "max(x.price)", f"max({self.call([q])})"
        )
        key = self.one_of("x.k", "x.day", "x.ok", "upper(x.s)", "x.rec.name", f"{self.asking([q])}")
        source = self.one_of("a x", "a x", f"({self.rows('r')}) x", "a x JOIN b y ON x.k = y.k")
        items = [f"{key} AS g", f"llm('Of', {self.one_of(aggregate, key, f'{key}, {aggregate}')}) AS t"]
        having = self.one_of(
            "",
            " HAVING count(*) > 3",
            f" HAVING llm_filter('H', {aggregate})",
            f" HAVING max(x.n) > 5 AND llm_filter('H', {key}, {aggregate})",
        )
        group = self.one_of(key, key, key, f"ROLLUP ({key})", f"CUBE ({key}, x.n % 2)", f"GROUPING SETS (({key}), ())")
        text = f"SELECT {', '.join(items)} FROM {source}{self.where([q])} GROUP BY {group}{having}"
        kind = self.random.random()
        if kind < 0.2:
            return f"SELECT o.t, llm('Outer', o.t) AS u FROM ({text}) o WHERE llm_filter('Good?', o.t)"
        if kind < 0.3:
            return f"SELECT y.id, o.t FROM b y LEFT JOIN ({text}) o ON o.t > y.s AND y.k = 1"
        return text

    def named(self) -> str:
        """Aliases that other items, GROUP BY, HAVING and ORDER BY use."""
        call, asks = self.call(["x"]), self.asking(["x"])
        return self.random.choice(
            [
                f"SELECT {call} AS t, upper(t) AS big, {asks} AS q FROM a x{self.where(['x'])}",
                f"SELECT {call} AS t, count(*) AS c FROM a x{self.where(['x'])} GROUP BY t HAVING c > 1",
                f"SELECT x.k, {asks} AS q, sum(x.n) AS total FROM a x GROUP BY x.k, q HAVING total > 3",
                f"SELECT x.id, {call} AS t FROM a x{self.where(['x'])} ORDER BY t DESC, x.id LIMIT 5",
                f"SELECT x.id AS i, {asks} AS q, CASE WHEN q THEN {call} END AS t FROM a x ORDER BY i LIMIT 12",
                "SELECT x.k AS g, llm('Key', g) AS t FROM a x GROUP BY g",
            ]
        )

    def in_parts(self) -> str:
        """Set operations with ORDER BY and LIMIT, in FROM, in IN, and with calls above."""
        parts = [
            f"(SELECT {q}.id, {self.text([q])} AS t FROM {table} {q}{self.where([q])}"
            + self.one_of("", "", f" ORDER BY {q}.id LIMIT {self.random.randint(1, 6)}")
            + ")"
            for q, table in zip("xy", ("a", "b"))
        ]
        both = f" {self.random.choice(self.set_operations)} ".join(parts)
        where = self.one_of("o.id > 3", "llm_filter('Good?', o.t)")
        return self.random.choice(
            [
                both,
                f"SELECT llm('Above', o.t) AS u, o.id FROM ({both}) o WHERE {where}",
                f"SELECT z.id, {self.call(['z'])} AS t FROM a z WHERE z.id IN (SELECT o.id FROM ({both}) o)",
                f"WITH o AS ({both}) SELECT o.t, count(*) AS c FROM o GROUP BY o.t",
            ]
        )

    def deep(self) -> str:
        """Subqueries in subqueries, each with calls."""
        items = f"x.id, x.k, x.n, {self.text(['x'])} AS s, {self.asking(['x'])} AS q, x.day"
        first = f"SELECT {items} FROM a x{self.where(['x'])}"
        grouped = "m.k AS id, m.k, max(m.n) AS n, max(llm('Mid', m.s)) AS s, bool_or(m.q) AS q"
        met = "y.k = m.k AND llm_filter('Good?', y.s, m.s)"
        second = self.one_of(
            f"SELECT m.id, m.k, m.n, llm('Mid', m.s) AS s, m.q FROM ({first}) m WHERE m.q",
            f"SELECT {grouped} FROM ({first}) m GROUP BY m.k",
            f"SELECT m.id, m.k, m.n, m.s, row_number() OVER (PARTITION BY m.k ORDER BY m.id) = 1 AS q FROM ({first}) m",
            f"SELECT DISTINCT m.id, m.k, m.n, m.s, m.q FROM ({first}) m JOIN b y ON {met}",
        )
        where = self.one_of(
            "", " WHERE o.q", " WHERE llm_filter('Good?', o.s)", " WHERE o.n > 3 AND llm_filter('Last?', o.s, o.k)"
        )
        return f"SELECT o.id, o.s, llm('Top', o.s, o.n) AS t FROM ({second}) o{where}"

    # -- parts --------------------------------------------------------------------------------------------------------

    def one_of(self, *choices):
        return self.random.choice(choices)

    def table(self, name: str) -> str:
        return "nothing" if self.chance(0.03) else super().table(name)

    def value(self, q: str) -> str:
        """A field without a call, of any type and form."""
        return self.random.choice(
            [
                *(f"{q}.{name}" for name in ("s", "s", "n", "k", *OTHERS)),
                *(
                    f"{q}.rec.name",
                    f"{q}.rec.size AS size",
                    f"upper({q}.s)",
                    f"{q}.s || {q}.u AS both",
                    f"{q}.tags[1] AS first",
                ),
                *(
                    f"{{'a': {q}.s, 'b': {q}.n}}",
                    f"coalesce({q}.s, 'none')",
                    f"CASE WHEN {q}.n > 3 THEN {q}.s END AS some",
                ),
                *(f"{q}.n + 1", f"{q}.n % 3", f"CAST({q}.day AS VARCHAR)", f"{q}.price * 2 AS twice", f"year({q}.day)"),
                *(f"[{q}.s, 'x'] AS list", f"length({q}.s)", f"{q}.n > 4 AS many", f"substr({q}.s, 1, 1)"),
            ]
        )

    def prompt(self, q: str) -> str:
        return self.one_of(
            "'P'", "'P'", "'Q'", f"'Q' || {q}.k", f"CASE WHEN {q}.ok THEN 'P' ELSE 'Q' END", f"{q}.s || '?'"
        )

    def call(self, names: list[str], columns: list[str] | None = None) -> str:
        if columns is not None or self.chance(0.3):
            return super().call(names, columns)
        q, other = self.random.choice(names), self.random.choice(names)
        fields = ", ".join(dict.fromkeys([self.value(q), *([self.value(other)] if self.chance(0.4) else [])]))
        return self.random.choice(
            [
                f"llm({self.prompt(q)}, {fields})",
                f"llm('Say {{s}}', {q}.s)",
                f"llm('Say {{s}} of {{n}}', {q}.s, {q}.n, {other}.u)",
                f"llm('P', {fields}, max_tokens := 9)",
                f"llm('P', {fields}, choices := ['x', 'y', 'é'])",
                f"llm_classify('C', ['x', 'y', 'z'], {fields})",
                f"llm_classify('C {{u}}', labels := ['x', 'y'], {q}.u)",
                f"struct_extract(llm_extract('E', 'STRUCT(year INTEGER, about VARCHAR)', {fields}), 'about')",
                f"CAST(llm_score('How?', {fields}) AS VARCHAR)",
                f"CAST(llm('D', {fields}, return_type := 'DATE') AS VARCHAR)",
                f"llm('P', llm_classify('C', ['x', 'y'], {q}.s) AS kind, {q}.k)",
                f"CAST(llm('N', {fields}, return_type := 'INTEGER') AS VARCHAR)",
            ]
        )

    def asking(self, names: list[str]) -> str:
        if self.chance(0.5):
            return super().asking(names)
        q = self.random.choice(names)
        fields = ", ".join(self.value(name) for name in dict.fromkeys([q, names[-1]]))
        return self.random.choice(
            [
                f"llm_filter('Good?', {fields})",
                f"llm_filter('Is {{s}} good?', {q}.s)",
                f"llm_filter({self.prompt(q)}, {q}.s, {q}.k)",
                f"llm_score('How?', {fields}) > 4",
                f"llm('N', {fields}, return_type := 'INTEGER') BETWEEN 2 AND {q}.n",
                f"llm('B', {fields}, return_type := 'BOOLEAN')",
                f"llm('D', {fields}, return_type := 'DATE') > {q}.day",
                f"{self.call([q])} LIKE '%1%'",
                f"{self.call(names)} IN ('x', 'P1', 'y')",
                f"llm_filter('Good?', {q}.s) = llm_filter('Bad?', {q}.s)",
                f"list_contains(llm('L', {fields}, return_type := 'VARCHAR[]'), 'item 1')",
            ]
        )

    def plain(self, names: list[str]) -> str:
        if self.chance(0.5):
            return super().plain(names)
        q = self.random.choice(names)
        return self.random.choice(
            [
                *(
                    f"{q}.ok",
                    f"{q}.day > DATE '2024-01-31'",
                    f"{q}.price >= 2.5",
                    f"{q}.tags IS NULL",
                    f"{q}.u LIKE 'n%'",
                ),
                *(f"{q}.rec.name = 'x'", f"{q}.ratio < 1", f"{q}.moment IS NOT NULL", f"list_contains({q}.tags, 't1')"),
                *(
                    f"{q}.s IN ('a1', '', 'it''s')",
                    f"{q}.n IS DISTINCT FROM 3",
                    f"{q}.n BETWEEN 2 AND 8",
                    f"NOT {q}.ok",
                ),
            ]
        )

    def item(self, names: list[str]) -> str:
        if self.chance(0.6):
            return super().item(names)
        q, call = self.random.choice(names), self.call(names)
        return self.random.choice(
            [
                f"{q}.{self.random.choice(OTHERS)}",
                f"llm('L', {self.value(q)}, return_type := 'VARCHAR[]')",
                f"llm_extract('E', 'STRUCT(year INTEGER, about VARCHAR)', {self.value(q)})",
                f"struct_extract(llm_extract('E', 'STRUCT(year INTEGER, about VARCHAR)', {q}.s), 'year') + {q}.k",
                f"llm_score('How?', {self.value(q)}) * 2",
                f"llm('N', {self.value(q)}, return_type := 'INTEGER', on_error := 'return')",
                f"{self.call(names)} || {self.call(names)}",
                f"coalesce({self.call(names)}, {q}.s, 'none')",
                f"CASE WHEN {self.asking(names)} AND {self.plain(names)} THEN {call} ELSE {self.text(names)} END",
                f"{self.asking(names)} OR {self.plain(names)}",
                f"{q}.k IN (SELECT i.k FROM c i WHERE {self.asking(['i'])})",
                f"EXISTS (SELECT 1 FROM c i WHERE i.k = {q}.k AND {self.asking(['i'])})",
                f"(SELECT llm('Sole', max(i.s) AS s) FROM b i WHERE i.k = {q}.k)",
                f"(SELECT min({self.call(['i'])}) FROM c i WHERE i.k = {q}.k AND {self.asking(['i'])})",
                f"(SELECT sum(i.n) FROM b i WHERE i.k = {q}.k AND {self.asking(['i'])})",
                f"[{self.call(names)}, {q}.s]",
                f"{{'t': {self.call(names)}, 'k': {q}.k}}",
                f"row_number() OVER (ORDER BY {', '.join(f'{name}.id' for name in names)})",
            ]
        )

    def predicate(self, names: list[str]) -> str:
        if self.chance(0.6):
            return super().predicate(names)
        q = self.random.choice(names)
        return self.random.choice(
            [
                self.asking(names),
                f"NOT ({self.condition(names, 2)})",
                f"({self.asking(names)}) IS NOT TRUE",
                f"coalesce({self.asking(names)}, {self.plain(names)})",
                f"({q}.k, {q}.n) IN (SELECT i.k, i.n FROM b i WHERE {self.asking(['i'])})",
                f"{q}.s NOT IN (SELECT {self.call(['i'])} FROM c i WHERE i.s IS NOT NULL)",
                f"{q}.n >= (SELECT max(i.n) FROM c i WHERE i.k = {q}.k AND {self.asking(['i'])})",
                f"(SELECT bool_or({self.asking(['i'])}) FROM c i WHERE i.k = {q}.k)",
                f"EXISTS (SELECT 1 FROM b i JOIN c j ON i.k = j.k WHERE i.id = {q}.id AND {self.asking(['i', 'j'])})",
                f"NOT EXISTS (SELECT 1 FROM c i WHERE {self.asking(['i'])} AND i.n = {q}.n)",
                f"{self.call(names)} <> {self.call(names)}",
            ]
        )
