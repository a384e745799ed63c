"""llm_agg: one answer for each group, as a plain function that reduces the rows one after the other finds it."""

from __future__ import annotations

import json
import shutil
import zlib

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmsql
from llmsql.demo import MODEL_FOLDER
from llmsql.testing import FakeModel

ROWS = [
    (1, "a", 3, None),
    (1, "b", 2, "x"),
    (1, "c", 1, None),
    (2, "d", 0, "y"),
    (2, None, 5, None),
    (3, None, 1, None),
]


def answer(prompt, fields, options):
    """A short text that depends on all that was asked, and on its order."""
    ((name, items),) = fields.items()
    return f"{name[0]}{zlib.crc32(repr((prompt, items)).encode()) % 1000}"


def listed(prompt, fields, options):
    """The items themselves."""
    (items,) = fields.values()
    return "|".join("/".join(map(str, item.values())) if isinstance(item, dict) else str(item) for item in items)


def reduced(prompt, name, items, context, asked):
    """The answer about `items`, as the documentation says it is found; the questions are added to `asked`."""

    def ask(name, items):
        asked.add(json.dumps([prompt, name, items]))
        return answer(prompt, {name: items}, {})

    def chunks(items):
        found = [[]]
        for item in items:
            size = sum(len(json.dumps(one, ensure_ascii=False)) for one in [*found[-1], item])
            if found[-1] and size > context:
                found.append([])
            found[-1].append(item)
        return found

    if not items:
        return None
    answers = [ask(name, chunk) for chunk in chunks(items)]
    while len(answers) > 1:
        parts = chunks(answers)
        answers = [part[0] if len(part) == 1 else ask("partial_answers", part) for part in parts]
    return answers[0]


@pytest.fixture
def con():
    with llmsql.connect(model=FakeModel(listed)) as session:
        session.execute("CREATE TABLE t (k INTEGER, s VARCHAR, n INTEGER, z VARCHAR)")
        session.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
        yield session


texts = st.one_of(st.none(), st.text('abß"\n☕', max_size=6))
tables = st.lists(st.tuples(st.integers(0, 3), texts, st.one_of(st.none(), st.integers(-3, 3))), max_size=40)


@settings(max_examples=30, deadline=None)
@given(rows=tables, context=st.integers(36, 120), single=st.booleans(), plan=st.booleans())
def test_it_is_the_naive_reduction(rows, context, single, plan):
    with llmsql.connect(model=FakeModel(answer, context=context), plan=plan) as con:
        con.execute("CREATE TABLE t (k INTEGER, s VARCHAR, n INTEGER)")
        con.register("given", pa.table({name: [row[i] for row in rows] for i, name in enumerate("ksn")}))
        con.execute("INSERT INTO t SELECT * FROM given")
        fields = "s" if single else "s, n"
        found = dict(con.sql(f"SELECT k, llm_agg('Sum', {fields}) FROM t GROUP BY k").fetchall())
        calls = con.last_query.model_calls
    asked: set[str] = set()
    wanted = {}
    for key in {row[0] for row in rows}:
        shown = [{name: v for name, v in zip("sn", row[1:]) if v is not None} for row in rows if row[0] == key]
        items = [row["s"] if single else row for row in shown if row.get("s") is not None or (not single and row)]
        wanted[key] = reduced("Sum", "s" if single else "rows", items, context, asked)
    assert found == wanted
    assert calls == len(asked)


SHAPES = {
    "SELECT llm_agg('Sum', s) FROM t": [("a|b|c|d",)],
    "SELECT k, llm_agg('Sum', s) FROM t GROUP BY k ORDER BY k": [(1, "a|b|c"), (2, "d"), (3, None)],
    "SELECT k, llm_agg('Sum', s ORDER BY n) AS a, count(*) FROM t GROUP BY ALL ORDER BY k": [
        (1, "c|b|a", 3),
        (2, "d", 2),
        (3, None, 1),
    ],
    "SELECT llm_agg('Sum', s, n ORDER BY n DESC, s) FROM t WHERE k = 1": [("a/3|b/2|c/1",)],
    "SELECT llm_agg('Sum', s AS name ORDER BY k DESC, n) FROM t": [("d|c|b|a",)],
    "SELECT llm_agg('Sum', s) WITHIN GROUP (ORDER BY n) FROM t": [("d|c|b|a",)],
    "SELECT llm_agg('Sum', {'name': s, 'z': z}) FROM t WHERE k < 3": [("a|b/x|c|d/y",)],
    "SELECT llm_agg('Sum', *) FROM t WHERE k = 3": [("3/1",)],
    "SELECT llm_agg('Sum', t.*) FROM t WHERE k = 3": [("3/1",)],
    "SELECT llm_agg(DISTINCT 'Sum', k ORDER BY k DESC) FROM t": [("3|2|1",)],
    "SELECT llm_agg(DISTINCT 'Sum', z IS NULL AS z) FROM t": [("True|False",)],
    "SELECT llm_agg('Sum', s) FILTER (WHERE n < 3) AS a, llm_agg('Sum', z) FROM t": [("b|c|d", "x|y")],
    "SELECT llm_agg('Sum', s) FROM t WHERE false": [(None,)],
    "SELECT k, llm_agg('Sum', s) FROM t WHERE false GROUP BY k": [],
    "SELECT llm_agg('Sum', s) FILTER (WHERE k = 9) FROM t": [(None,)],
    "SELECT k FROM t GROUP BY k HAVING llm_agg('Sum', s) LIKE '%b%'": [(1,)],
    "SELECT k FROM t GROUP BY k ORDER BY llm_agg('Sum', s) DESC NULLS LAST": [(2,), (1,), (3,)],
    "SELECT k + 1 AS j, upper(llm_agg('Sum', s)) || '!' FROM t GROUP BY j ORDER BY j": [
        (2, "A|B|C!"),
        (3, "D!"),
        (4, None),
    ],
    "SELECT llm_agg('Sum', s) AS a, k + 1 AS j FROM t GROUP BY 2 ORDER BY 2": [("a|b|c", 2), ("d", 3), (None, 4)],
    "SELECT a FROM (SELECT k, llm_agg('Sum', z) AS a FROM t GROUP BY k) WHERE k < 3 ORDER BY k": [("x",), ("y",)],
    "WITH c AS (SELECT k, llm_agg('Sum', z) AS a FROM t GROUP BY k) SELECT a FROM c WHERE a > 'x'": [("y",)],
    "SELECT (SELECT llm_agg('Sum', z) FROM t) AS a": [("x|y",)],
    "SELECT DISTINCT k, (SELECT llm_agg('Sum', s) FROM t i WHERE i.k = o.k) FROM t o ORDER BY k": [
        (1, "a|b|c"),
        (2, "d"),
        (3, None),
    ],
    "SELECT k, llm_agg('Sum', s) FROM t GROUP BY ROLLUP (k) ORDER BY k NULLS LAST": [
        (1, "a|b|c"),
        (2, "d"),
        (3, None),
        (None, "a|b|c|d"),
    ],
    "SELECT k, llm_agg('Sum', s ORDER BY n) OVER (PARTITION BY k) FROM t WHERE k < 3 ORDER BY k, n": [
        (1, "c|b|a"),
        (1, "c|b|a"),
        (1, "c|b|a"),
        (2, "d"),
        (2, "d"),
    ],
    "SELECT llm_agg('Sum of ' || k, s) FROM t WHERE k < 3 GROUP BY k ORDER BY k": [("a|b|c",), ("d",)],
    "SELECT llm_agg('Sum', s) FROM t UNION ALL SELECT llm_agg('Sum', z) FROM t": [("a|b|c|d",), ("x|y",)],
    "SELECT llm_agg('Sum', s) FROM (SELECT * FROM t ORDER BY n, s)": [("d|c|b|a",)],
    "SELECT llm_agg('Sum', range) FROM range(5)": [("0|1|2|3|4",)],
    "SELECT llm_agg('Sum', x) FROM (VALUES (3), (1), (2)) v(x)": [("3|1|2",)],
    "SELECT llm_agg('Sum', a.s) FROM t a JOIN t b USING (k) WHERE k = 1 AND b.n > 1": [("a|a|b|b|c|c",)],
    "SELECT llm_agg('Again', llm_agg) FROM (SELECT llm_agg('Sum', s) FROM t GROUP BY k ORDER BY k) q(llm_agg)": [
        ("a|b|c|d",)
    ],
    "SELECT llm_agg('Sum', llm('Say', s) AS s) FROM t": [("a|b|c|d",)],
    "SELECT llm_agg('Sum', s) FILTER (WHERE llm_filter('Is it?', n)) FROM t": [("b|d",)],
    "SELECT k FROM t GROUP BY k HAVING llm_filter('Is it?', llm_agg('Count', n) AS n) ORDER BY k": [(1,), (3,)],
}


def shape_answer(prompt, fields, options):
    if options["function"] == "llm_filter":
        return "Yes" if fields["n"] in (0, 2, "1", "3|2|1") else "No"
    return listed(prompt, fields, options) if options["function"] == "llm_agg" else str(*fields.values())


@pytest.mark.parametrize("plan", [True, False], ids=["planned", "in place"])
@pytest.mark.parametrize("sql", SHAPES)
def test_it_stands_where_an_aggregate_may(sql, plan):
    with llmsql.connect(model=FakeModel(shape_answer), plan=plan) as con:
        con.execute("CREATE TABLE t (k INTEGER, s VARCHAR, n INTEGER, z VARCHAR)")
        con.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
        assert con.sql(sql).fetchall() == SHAPES[sql]


ORDERED = pa.table({"x": list(range(5000, 0, -1))})


@pytest.mark.parametrize(
    "source", ["numbers", "view_of_it", "(SELECT * FROM numbers)", "c", "ORDERED", "numbers AS n", "'{file}'"]
)
def test_rows_keep_the_order_of_their_source(source, tmp_path):
    file = tmp_path / "numbers.parquet"
    with llmsql.connect(model=FakeModel(listed)) as con:
        con.execute("CREATE TABLE numbers AS SELECT 5000 - range AS x FROM range(5000)")
        con.execute(f"COPY numbers TO '{file}' (ROW_GROUP_SIZE 2048)")
        con.execute("CREATE VIEW view_of_it AS SELECT x FROM numbers WHERE x > 0")
        sql = (
            "WITH c AS (SELECT * FROM numbers) "
            f"SELECT x % 2 AS even, llm_agg('List', x) FROM {source.format(file=file)} GROUP BY even ORDER BY even"
        )
        wanted = ["|".join(str(x) for x in range(5000, 0, -1) if x % 2 == even) for even in (0, 1)]
        assert [a for _, a in con.sql(sql).fetchall()] == wanted
        con.execute("BEGIN")
        assert [a for _, a in con.sql(sql).fetchall()] == wanted


def test_joined_rows_come_in_the_same_order_each_time(con):
    sql = "SELECT llm_agg('Sum', a.s, b.n) FROM t a JOIN t b ON a.k <= b.k"
    assert len({con.sql(sql).fetchall()[0] for _ in range(3)}) == 1


def test_a_row_that_does_not_fit_fails_its_group_alone():
    model = FakeModel(answer, context=20)
    with llmsql.connect(model=model) as con:
        con.execute(
            "CREATE TABLE t AS SELECT * FROM (VALUES (1, 'a'), (2, 'b'), (2, repeat('x', 30)), (3, 'c')) v(k, s)"
        )
        with pytest.warns(llmsql.LlmsqlWarning, match="row 2 of the group's 2 is 32 tokens long.*leaves 20"):
            found = dict(con.sql("SELECT k, llm_agg('Sum', s) FROM t GROUP BY k").fetchall())
        assert found[2] is None
        assert found[1] is not None
        assert found[3] is not None
        ((row,),) = con.sql("SELECT row FROM llm_errors()").fetchall()
        assert json.loads(row) == {"k": 2}
        with pytest.raises(llmsql.RowError, match=r"llm_agg failed: row 2 .*the group: k='2'"):
            con.sql("SELECT k, llm_agg('Sum', s, on_error := 'fail') FROM t GROUP BY k")
    with llmsql.connect(model=FakeModel(lambda *_: "y" * 15, context=20)) as con:
        with pytest.warns(llmsql.LlmsqlWarning, match="no two partial answers fit"):
            assert con.sql("SELECT llm_agg('Sum', range + 10000000) FROM range(9)").fetchall() == [(None,)]


def test_a_failed_chunk_fails_its_group_alone():
    def fn(prompt, fields, options):
        if "bad" in fields.get("s", []):
            raise ValueError("no")
        return answer(prompt, fields, options)

    with llmsql.connect(model=FakeModel(fn, context=20)) as con:
        con.execute("CREATE TABLE t AS SELECT range % 2 AS k, 's' || range AS s FROM range(20)")
        con.execute("UPDATE t SET s = 'bad' WHERE s = 's14'")
        with pytest.warns(llmsql.LlmsqlWarning, match="ValueError: no"):
            found = dict(con.sql("SELECT k, llm_agg('Sum', s) FROM t GROUP BY k").fetchall())
        assert found[0] is None
        assert found[1].startswith("p")


def test_rows_added_at_the_end_leave_what_is_cached():
    with llmsql.connect(model=FakeModel(answer, context=40), cache=":memory:") as con:
        con.execute("CREATE TABLE t AS SELECT 'text ' || range AS s FROM range(100)")
        first = con.sql("SELECT llm_agg('Sum', s) FROM t").fetchall()
        calls = con.last_query.model_calls
        assert con.sql("SELECT llm_agg('Sum', s) FROM t").fetchall() == first
        assert con.last_query.model_calls == 0
        assert con.last_query.cached == calls
        con.execute("INSERT INTO t VALUES ('one more')")
        assert con.sql("SELECT llm_agg('Sum', s) FROM t").fetchall() != first
        assert con.last_query.model_calls < 8 < calls


def test_equal_chunks_are_asked_once():
    for deduplicate, calls in ((True, 4), (False, 40)):
        with llmsql.connect(model=FakeModel(answer), deduplicate=deduplicate) as con:
            con.execute("CREATE TABLE t AS SELECT range % 40 AS k, range % 4 AS x FROM range(80)")
            con.sql("SELECT k, llm_agg('Sum', x) FROM t GROUP BY k")
            assert con.last_query.model_calls == calls


def test_budgets_count_what_is_asked():
    with llmsql.connect(model=FakeModel(answer, context=12), max_rows=5) as con:
        con.sql("SELECT llm_agg('Sum', range) FROM range(12)")
        with pytest.raises(llmsql.BudgetError):
            con.sql("SELECT llm_agg('Sum', range) FROM range(100)")


@pytest.mark.parametrize(
    ("sql", "message", "column"),
    [
        ("SELECT llm_agg('Sum') FROM t", "llm_agg has no field to ask about", 8),
        ("SELECT llm_agg('Sum', s, foo := 3) FROM t", "llm_agg has no option 'foo'", 8),
        ("SELECT 1, llm_agg('Sum', nix) FROM t", '"nix" not found', 11),
        ("SELECT k FROM t WHERE llm_agg('Sum', s) = 'x'", "WHERE sees rows, not groups", 23),
        ("SELECT llm_agg('Sum', count(*)) FROM t", "an aggregate stands inside llm_agg", 8),
        ("SELECT llm_agg('Sum', llm_agg('Sum', s)) FROM t", "an aggregate stands inside llm_agg", 8),
        ("SELECT llm_agg('Sum {s}', s) FROM t", "asks about many rows: {s}", 8),
        ("UPDATE t SET s = llm_agg('Sum', s)", "must stand in a SELECT", 18),
        ("SELECT llm('Say', s ORDER BY n) FROM t", "llm is asked about each row", 8),
        ("SELECT llm(DISTINCT 'Say', s) FROM t", "llm is asked about each row", 8),
    ],
)
def test_mistakes_are_shown_where_they_are(con, sql, message, column):
    with pytest.raises(llmsql.CallError, match=r"line 1, column") as caught:
        con.sql(sql)
    assert message in str(caught.value)
    assert caught.value.column == column


def test_a_plain_connection_gives_it_a_list():
    with duckdb.connect() as connection:
        registration = llmsql.register(connection, model=FakeModel(listed))
        sql = "SELECT llm_agg('Sum', list({'a': range, 'b': NULL} ORDER BY range DESC)) FROM range(3)"
        assert connection.execute(sql).fetchall() == [("2|1|0",)]
        with pytest.raises(duckdb.Error, match="give it the rows of a group as a list"):
            connection.execute("SELECT llm_agg('Sum', range) FROM range(3)").fetchall()
        registration.remove()


def test_views_and_parameters(con):
    con.execute("CREATE VIEW sums AS SELECT k, llm_agg('Sum', s ORDER BY n) AS a FROM t GROUP BY k")
    assert con.execute("SELECT a FROM sums WHERE k = 1").fetchall() == [("c|b|a",)]
    sql = "SELECT llm_agg(?, s AS name ORDER BY n) FILTER (WHERE n < ?) FROM t"
    assert con.execute(sql, ["Sum", 3]).fetchall() == [("d|c|b",)]


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """The demo model with a context of 400 tokens."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 400}))
    return folder


def test_the_demo_model_reduces_within_its_context(short_demo):
    with llmsql.connect(model=short_demo, cache=False) as con:
        con.execute(
            "CREATE TABLE r AS SELECT range % 3 AS k, 'The hose leaks after ' || range || ' days and I want my money "
            "back.' AS review FROM range(60)"
        )
        sql = "SELECT k, llm_agg('Summarise the reviews', review, max_tokens := 8) FROM r GROUP BY k ORDER BY k"
        found = con.sql(sql).fetchall()
        assert con.last_query.errors == []
        assert con.last_query.model_calls > 6
        assert con.last_query.prompt_tokens / con.last_query.model_calls > 150  # chunks are filled
        assert all(isinstance(text, str) for _, text in found)
        assert con.sql(sql).fetchall() == found
        with pytest.warns(llmsql.LlmsqlWarning, match="row 1 of the group's 1 is .* tokens long"):
            con.sql("SELECT llm_agg('Summarise', repeat('leaks ', 500)) FROM range(1)").fetchall()
