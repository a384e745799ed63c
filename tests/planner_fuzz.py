"""Random statements over small tables, from a seed. Each has one right answer: LIMIT and windows order by keys."""

from __future__ import annotations

import random
from collections.abc import Sequence

SETUP = """
CREATE TABLE a AS SELECT range AS id, range % 5 AS k, CASE WHEN range % 7 = 0 THEN NULL ELSE 'a' || range % 6 END AS s,
    (range * 7) % 11 AS n FROM range(40);
CREATE TABLE b AS SELECT range AS id, range % 4 AS k, CASE WHEN range % 5 = 0 THEN NULL ELSE 'b' || range % 3 END AS s,
    (range * 3) % 13 AS n FROM range(25);
CREATE TABLE c AS SELECT range + 3 AS id, CASE WHEN range % 4 = 1 THEN NULL ELSE range % 3 END AS k,
    'a' || range % 4 AS s, range % 6 AS n FROM range(12);
CREATE VIEW v AS SELECT * FROM a WHERE n > 2;
"""
AGGREGATES = ["count(*)", "sum({q}.n)", "max({q}.s)", "count({call})", "min({call})", "count(DISTINCT {call})"]
AGGREGATES += ["count(*) FILTER (WHERE {asks})", "max({call}) FILTER (WHERE {plain})", "bool_or({asks})"]
JOINS = ["JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN"]
WINDOW_CALLS = [
    "row_number()",
    "count(*)",
    "sum({q}.n)",
    "lag({call})",
    "min({call})",
    "count(*) FILTER (WHERE {asks})",
]


class Statements:
    """Statements of every shape that the planner stages, and of some that it leaves."""

    others = ""  # columns that the tables have beside id, k, s and n, each with a comma before it
    set_operations: Sequence[str] = ("UNION ALL", "UNION", "INTERSECT", "EXCEPT", "UNION ALL BY NAME", "EXCEPT ALL")

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def statement(self) -> str:
        """One statement; those that write change the table `w`, a copy of `a`."""
        shapes = [(self.query, 7), (self.grouped, 4), (self.set_operation, 3), (self.cte, 3), (self.windows, 3)]
        shapes += [(self.distinct_on, 1), (self.lateral, 1), (self.writing, 4), (self.values, 1)]
        return self.random.choices([shape for shape, _ in shapes], [weight for _, weight in shapes])[0]()

    # -- statements ---------------------------------------------------------------------------------------------------

    def query(self) -> str:
        source, names = self.source()
        items = [self.item(names) for _ in range(self.random.randint(1, 3))]
        text = self.select(items, source, self.where(names))
        kind = self.random.random()
        if kind < 0.2:
            return f"SELECT DISTINCT {text.removeprefix('SELECT ')}"
        if kind < 0.5:
            keys = ", ".join(f"{name}.id" for name in names)
            call = f"{self.call(names)}, " if self.chance(0.2) else ""
            text += f" ORDER BY {call}{keys}"
            if self.chance(0.8):
                text += f" LIMIT {self.random.randint(0, 9)}"
                text += f" OFFSET {self.random.randint(0, 4)}" if self.chance(0.3) else ""
        return text

    def grouped(self) -> str:
        source, names = self.source()
        q = self.random.choice(names)
        key = self.random.choice([self.call([q]), f"{q}.k", f"{q}.k", self.asking([q]), f"{q}.n % 3"])
        items = [key, *(self.aggregate(names) for _ in range(self.random.randint(1, 2)))]
        if key == f"{q}.k" and self.chance(0.4):
            items.append(f"llm('Of key', {q}.k)")
        if self.chance(0.2):
            items.append(f"llm('Of group', {self.random.choice(['count(*)', f'sum({q}.n)', f'max({q}.s)'])} AS v)")
        sets = key == f"{q}.k" and self.chance(0.1)
        text = self.select(items[:2] if sets else items, source, self.where(names))
        if sets:
            return f"{text} GROUP BY {self.random.choice(['ROLLUP', 'CUBE'])} ({q}.k)"
        text += (
            self.random.choice([" GROUP BY ALL", " GROUP BY 1", " GROUP BY c0"])
            if "Of" not in text
            else (f" GROUP BY {key}")
        )
        if self.chance(0.3) and "GROUP BY ALL" not in text:
            having = [f"count(*) > {self.random.randint(0, 3)}", f"bool_or({self.asking([q])})"]
            text += f" HAVING {self.random.choice(having)}"
        return text

    def set_operation(self) -> str:
        width = self.random.randint(1, 2)
        parts = []
        for _ in range(self.random.choice([2, 2, 3])):
            source, names = self.source(1)
            items = [self.text(names) for _ in range(width)]
            parts.append(self.select(items, source, self.where(names)))
        text = parts[0]
        for part in parts[1:]:
            text += f" {self.random.choice(self.set_operations)} {part}"
        kind = self.random.random()
        if kind < 0.3:
            return f"SELECT {self.call(['u'], ['c0'])} AS d, * FROM ({text}) u" + (
                " WHERE c0 > 'a'" if kind < 0.1 else ""
            )
        return text

    def cte(self) -> str:
        inner = self.rows("x")
        kind = self.random.random()
        if kind < 0.4:
            items = [self.item(["x", "y"]) for _ in range(2)]
            body = self.select(items, "c1 x JOIN c1 y ON x.id = y.id + 1", self.where(["x", "y"]))
        elif kind < 0.7:
            second = (
                f"SELECT y.id, y.k, {self.text(['y'])} AS s, y.n{self.others} FROM c1 y WHERE {self.predicate(['y'])}"
            )
            inner = f"{inner}), c2 AS ({second}"
            body = self.select([self.item(["x"]), "x.id"], "c2 x", self.where(["x"]))
        else:
            body = self.select([self.item(["x"]), "x.n"], "c1 x", self.where(["x"]))
        return f"WITH c1 AS ({inner}) {body}"

    def windows(self) -> str:
        source, names = self.source(self.random.choice([1, 1, 2]))
        q = names[0]
        keys = ", ".join(f"{name}.id" for name in names)
        partition = self.random.choice(["", f"PARTITION BY {q}.k ", f"PARTITION BY {self.call([q])} "])
        order = self.random.choice([f"ORDER BY {keys}", f"ORDER BY {self.call([q])}, {keys}"])
        window = self.fill(self.random.choice(WINDOW_CALLS), names) + f" OVER ({partition}{order})"
        items = [window, self.item(names)]
        if self.chance(0.2):
            items.append(f"llm('Of row', row_number() OVER (ORDER BY {keys}) AS v)")
        text = self.select(items, source, self.where(names))
        qualify = [f"row_number() OVER ({partition}ORDER BY {keys}) <= 2", self.asking([q])]
        qualify.append(f"{self.asking([q])} AND count(*) OVER ({partition}) > 1")
        return f"{text} QUALIFY {self.random.choice(qualify)}" if self.chance(0.5) else text

    def distinct_on(self) -> str:
        key = self.random.choice(["x.k", self.call(["x"])])
        items = f"{self.item(['x'])} AS c0, x.id"
        return f"SELECT DISTINCT ON ({key}) {items} FROM a x{self.where(['x'])} ORDER BY {key}, x.id"

    def lateral(self) -> str:
        meet = f"y.k = x.k AND {self.asking(['y'])}"
        return self.random.choice(
            [
                f"SELECT x.id, l.z FROM a x, LATERAL (SELECT {self.text(['x'])} AS z) l{self.where(['x'])}",
                f"SELECT x.id, l.z FROM a x, LATERAL (SELECT max(y.n) AS z FROM b y WHERE {meet}) l",
                f"SELECT x.id, u.e, llm('E', u.e) AS z FROM a x, unnest([x.s, 'e' || x.k]) u(e){self.where(['x'])}",
                f"SELECT x.id, unnest([{self.text(['x'])}, 'e']) AS e FROM a x{self.where(['x'])}",
            ]
        )

    def values(self) -> str:
        rows = ", ".join(f"({i}, llm('V', {{'v': '{self.random.choice('pqr')}'}}))" for i in range(3))
        return (
            f"SELECT x.i, x.t, llm('T', x.t) AS u FROM (VALUES {rows}) x(i, t) WHERE x.i > {self.random.randint(0, 2)}"
        )

    def writing(self) -> str:
        kind = self.random.choice(
            ["update", "update", "update from", "delete", "delete using", "insert", "merge", "create"]
        )
        returning = " RETURNING *" if self.chance(0.4) else ""
        text = self.text(["w"])
        if kind == "update":
            more = ", n = n + 1" if self.chance(0.5) else ""
            return f"UPDATE w SET s = {text}{more}{self.where(['w'])}{returning}"
        if kind == "update from":  # b.id is a key, so there is one row for each of w
            where = self.where(["w", "x"]).replace(" WHERE ", " AND ", 1)
            return f"UPDATE w SET s = {self.text(['w', 'x'])}, k = x.k FROM b x WHERE x.id = w.id{where}{returning}"
        if kind == "delete":
            both = self.random.choice(["AND", "OR"])
            return f"DELETE FROM w WHERE {self.asking(['w'])} {both} {self.predicate(['w'])}{returning}"
        if kind == "delete using":
            where = f"x.k = w.k AND {self.asking(['w', 'x'])} AND {self.predicate(['x'])}"
            return f"DELETE FROM w USING b x WHERE {where}{returning}"
        if kind == "insert":
            source, names = self.source()
            items = f"{names[0]}.id, {names[0]}.k, {self.text(names)}, 1"
            return f"INSERT INTO w SELECT {items} FROM {source}{self.where(names)}{returning}"
        if kind == "create":
            source, names = self.source()
            items = [self.text(names), self.item(names)]
            return f"CREATE OR REPLACE TABLE w AS {self.select(items, source, self.where(names))}"
        condition = f" AND {self.asking(['w', 'x'])}" if self.chance(0.5) else ""
        first = (
            f"WHEN MATCHED{condition} THEN {self.random.choice(['DELETE', 'UPDATE SET s = ' + self.text(['w', 'x'])])}"
        )
        other = f" WHEN NOT MATCHED THEN INSERT VALUES (x.id, x.k, {self.text(['x'])}, 0)" if self.chance(0.6) else ""
        return f"MERGE INTO w USING c x ON x.id = w.id {first}{other}{returning.replace('*', 'merge_action, *')}"

    # -- parts --------------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def select(self, items: list[str], source: str, where: str) -> str:
        return "SELECT " + ", ".join(f"{item} AS c{i}" for i, item in enumerate(items)) + f" FROM {source}{where}"

    def rows(self, q: str) -> str:
        """A query with the columns of the tables, the ids of which are unique."""
        columns = self.random.choice(
            [
                "*",
                f"{q}.id, {q}.k, {q}.s, {q}.n{self.others}",
                f"{q}.id, {q}.k, llm('Inner', {q}.s) AS s, {q}.n{self.others}",
            ]
        )
        limit = f" ORDER BY {q}.id LIMIT 20" if self.chance(0.3) else ""
        return f"SELECT {columns} FROM a {q}{self.where([q], 1)}{limit}"

    def source(self, most: int = 3) -> tuple[str, list[str]]:
        """FROM, and the aliases that can be used above it."""
        count = min(most, self.random.choice([1, 1, 1, 2, 2, 3]))
        text, names = f"{self.table('x')} x", ["x"]
        for name in "yz"[: count - 1]:
            join = self.random.choice(JOINS)
            left = self.random.choice(names)
            on = [f"{left}.{self.random.choice(['k', 'id'])} = {name}.{self.random.choice(['k', 'id'])}"]
            if self.chance(0.15) and join == "JOIN":
                text += (
                    f" CROSS JOIN (SELECT * FROM {self.table(name)} LIMIT 0 OFFSET 0) {name}"
                    if self.chance(0.1)
                    else (f" CROSS JOIN c {name}")
                )
                names.append(name)
                continue
            if self.chance(0.35):
                on.append(self.asking(self.random.choice([[left], [name], [left, name]])))
            if self.chance(0.2):
                on.append(self.plain([self.random.choice([left, name])]))
            text += f" {join} {self.table(name)} {name} ON {' AND '.join(on)}"
            if join not in ("SEMI JOIN", "ANTI JOIN"):
                names.append(name)
        return text, names

    def table(self, name: str) -> str:
        if self.chance(0.15):
            return f"({self.rows('r')})"
        return self.random.choice(["a", "a", "b", "c", "v"])

    def where(self, names: list[str], most: int = 3) -> str:
        predicates = [self.predicate(names) for _ in range(self.random.randint(0, most))]
        return " WHERE " + " AND ".join(predicates) if predicates else ""

    def call(self, names: list[str], columns: list[str] | None = None) -> str:
        """A call that gives a text."""
        chosen = self.random.sample(columns or ["s", "n", "k"], 1 if columns else self.random.randint(1, 2))
        fields = ", ".join(f"{self.random.choice(names)}.{column}" for column in chosen)
        calls = [f"llm('P', {fields})"] * 3 + [f"llm('Q', {fields})"] * 2
        calls += [f"llm_classify('C', ['x', 'y', 'z'], {fields})"] * 2
        calls += [f"llm('P', {fields}, model := 'fast')", f"llm('P', {fields}, max_tokens := 7)"]
        if columns is None and self.chance(0.1):
            calls = [f"llm('Outer', llm('P', {fields}) AS inner_answer, {fields})"]
        return self.random.choice(calls)

    def text(self, names: list[str]) -> str:
        q = self.random.choice(names)
        return self.random.choice(
            [
                self.call(names),
                self.call(names),
                f"upper({self.call(names)})",
                f"coalesce({q}.s, {self.call(names)}, {self.call([q])})",
                f"CASE WHEN {self.plain(names)} THEN {self.call(names)} WHEN {self.asking(names)} THEN 'w' "
                f"ELSE {self.call(names)} END",
                f"{q}.s",
            ]
        )

    def item(self, names: list[str]) -> str:
        q = self.random.choice(names)
        call = self.call(names)
        return self.random.choice(
            [
                call,
                call,
                self.text(names),
                f"{q}.n",
                f"CASE WHEN {q}.n > 4 THEN {call} END",
                f"CASE {q}.k WHEN 1 THEN {call} WHEN 2 THEN 'two' ELSE {self.call(names)} END",
                f"nullif({q}.s, {call})",
                f"{q}.s IN ('a1', {call}, 'b2')",
                f"llm('N', {q}.s, return_type := 'INTEGER') + {q}.n",
                f"llm_score('How?', {q}.s)",
                self.condition(names, 2),
                f"CASE WHEN {self.condition(names, 2)} THEN {call} END",
                f"(SELECT count(*) FROM b i WHERE i.k = {q}.k)",
                f"(SELECT max({self.call(['i'])}) FROM b i WHERE i.k = {q}.k)",
                f"(SELECT {self.call(['i'])} FROM c i WHERE i.id = {q}.id)",
                f"(SELECT max({self.call(['i'])}) FROM b i)",
            ]
        )

    def aggregate(self, names: list[str]) -> str:
        return self.fill(self.random.choice(AGGREGATES), names)

    def fill(self, template: str, names: list[str]) -> str:
        q = self.random.choice(names)
        return template.format(q=q, call=self.call(names), asks=self.asking(names), plain=self.plain(names))

    def plain(self, names: list[str]) -> str:
        """A predicate without a call, NULL at times."""
        q = self.random.choice(names)
        return self.random.choice([f"{q}.n > {self.random.randint(0, 9)}", f"{q}.s = 'a{self.random.randint(0, 5)}'"])

    def asking(self, names: list[str]) -> str:
        """A predicate with one call; few different ones, so that they meet."""
        fields = f"{self.random.choice(names)}.{self.random.choice(['s', 's', 'n', 'k'])}"
        if len(names) > 1:
            fields = f"{names[0]}.s, {names[-1]}.s"
        choices = [f"llm_filter('Good?', {fields})", f"llm_classify('C', ['x', 'y', 'z'], {fields}) = 'x'"]
        return self.random.choice([*choices, f"llm_filter('Good?', {fields}, model := 'fast')"])

    def condition(self, names: list[str], depth: int) -> str:
        """AND, OR and NOT over predicates with and without calls."""
        if depth == 0 or self.chance(0.2):
            return self.asking(names) if self.chance(0.6) else self.plain(names)
        kind = self.random.random()
        if kind < 0.2:
            return f"NOT {self.condition(names, depth - 1)}"
        parts = [self.condition(names, depth - 1) for _ in range(self.random.randint(2, 3))]
        return "(" + (" OR " if kind < 0.6 else " AND ").join(parts) + ")"

    def predicate(self, names: list[str]) -> str:
        q = self.random.choice(names)
        may_not = self.random.choice(["", "NOT "])
        return self.random.choice(
            [
                f"{q}.n > {self.random.randint(0, 6)}",
                f"{q}.s IS NOT NULL",
                f"length({q}.s) = 2",
                f"llm_filter('Good?', {q}.s)",
                f"NOT llm_filter('Bad?', {q}.s, {q}.k)",
                f"llm_classify('C', ['x', 'y', 'z'], {q}.s) <> 'x'",
                f"(llm_filter('Either?', {q}.s) OR {q}.n = 1)",
                f"{self.call(names)} IS NOT NULL",
                f"{q}.k IN (SELECT k FROM b WHERE n > 3)",
                f"{q}.k {may_not}IN (SELECT i.k FROM b i WHERE {self.asking(['i'])})",
                f"{may_not}EXISTS (SELECT 1 FROM b i WHERE i.k = {q}.k AND {self.asking(['i'])})",
                f"EXISTS (SELECT 1 FROM c i WHERE i.id = {q}.id AND {self.asking(['i', q])})",
                f"{self.call([q])} IN (SELECT {self.call(['i'])} FROM c i)",
                f"{q}.n > (SELECT avg(i.n) FROM b i WHERE {self.asking(['i'])})",
                self.asking(names),
                self.condition(names, 2),
                self.condition(names, 3),
                f"CASE WHEN {self.plain(names)} THEN {self.asking(names)} ELSE {self.plain(names)} END",
            ]
        )
