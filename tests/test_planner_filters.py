"""LLM predicates in sequence, early stop under LIMIT, and the cases that DuckDB's own optimizer gets wrong."""

from __future__ import annotations

import pytest

import llmsql
from llmsql.optimizer import reorder
from llmsql.testing import FakeModel

SETUP = """
CREATE TABLE t AS SELECT range AS id, 'text ' || range AS body, 'topic ' || (range % 20) AS topic,
    repeat('long ', 300) || range AS story FROM range(4000);
"""


def answer(prompt, fields, options):
    """'keep 30' holds for 30 % of the numbers that the fields end with."""
    number = int(str(next(iter(fields.values()))).split()[-1]) * 7919 % 100
    holds = number < int(prompt.split()[-1])
    return ("Yes" if holds else "No") if options["function"] == "llm_filter" else str(holds)


def connect(**settings):
    session = llmsql.connect(model=FakeModel(answer), **settings)
    session.execute(SETUP)
    return session


@pytest.fixture(scope="module")
def con():
    with connect() as session:
        yield session


class TestOrder:
    def test_the_most_selective_first(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 90', body) AND llm_filter('keep 5', {'b': body})"
        con.sql(sql)
        asked = {stage.call: stage.asked for stage in con.last_query.stages}
        assert asked["llm_filter('keep 5', {'b': body})"] == 4000
        assert asked["llm_filter('keep 90', body)"] < 64 + 4000 * 0.06
        assert "keep 5" in con.last_query.decisions[0].splitlines()[1]

    def test_the_cheapest_first(self, con):
        con.sql("SELECT id FROM t WHERE llm_filter('keep 50', story) AND llm_filter('keep 50', {'b': body})")
        asked = {stage.call: stage.asked for stage in con.last_query.stages}
        assert asked["llm_filter('keep 50', {'b': body})"] == 4000
        assert asked["llm_filter('keep 50', story)"] < 64 + 4000 * 0.55

    def test_few_distinct_values_cost_next_to_nothing(self, con):
        con.sql("SELECT id FROM t WHERE llm_filter('keep 20', body) AND llm_filter('keep 80', topic)")
        asked = {stage.call: stage.asked for stage in con.last_query.stages}
        assert asked["llm_filter('keep 80', topic)"] == 20
        assert asked["llm_filter('keep 20', body)"] < 64 + 4000 * 0.85

    def test_the_same_choice_each_time(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 60', body) AND llm_filter('keep 40', {'b': body})"
        decisions = []
        for _ in range(2):
            con.sql(sql)
            decisions.append(con.last_query.decisions)
        assert decisions[0] == decisions[1]

    def test_off_is_the_order_written(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 90', body) AND llm_filter('keep 5', {'b': body})"
        with connect(order_filters=False) as off:
            assert sorted(off.sql(sql).fetchall()) == sorted(con.sql(sql).fetchall())
            assert off.last_query.model_calls == 4000 + 3600

    def test_without_deduplication_every_row_is_asked(self):
        with connect(deduplicate=False) as off:
            off.sql("SELECT count(*) FROM t WHERE llm_filter('keep 90', body) AND llm_filter('keep 50', topic)")
            assert off.last_query.model_calls == 4000 + 3600

    def test_explain_says_that_it_is_chosen_while_running(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 90', body) AND llm_filter('keep 5', topic) LIMIT 7"
        text = con.explain(sql)
        assert "measured on the way" in text
        assert "until 7 rows pass" in text
        analyzed = con.sql("EXPLAIN ANALYZE " + sql).fetchall()[0][1]
        assert "predicates in the order" in analyzed
        assert "rows looked at for 7" in analyzed

    def test_a_failed_row_is_told_once(self):
        def picky(prompt, fields, options):
            if str(fields.get("body")).endswith("77"):
                raise ValueError("no 77 here")
            return "Yes"

        with llmsql.connect(model=FakeModel(picky)) as session:
            session.execute(SETUP)
            with pytest.warns(UserWarning, match="40 of"):
                rows = session.sql("SELECT count(*) FROM t WHERE llm_filter('a', body) AND llm_filter('b', topic)")
            assert rows.fetchall() == [(3960,)]


class TestEarlyStop:
    def test_a_few_dozen_rows(self, con):
        rows = con.sql("SELECT id FROM t WHERE llm_filter('keep 30', body) LIMIT 5").fetchall()
        assert len(rows) == 5
        assert con.last_query.model_calls == 32

    def test_off_asks_all(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 30', body) ORDER BY id LIMIT 5"
        with connect(early_stop=False) as off:
            assert off.sql(sql).fetchall() == con.sql(sql).fetchall()
            assert off.last_query.model_calls == 4000

    def test_rare_rows_are_read_further_and_further(self, con, monkeypatch):
        monkeypatch.setattr("llmsql.filtering.FIRST_POOL", 100)
        sql = "SELECT id FROM t WHERE llm_filter('keep 1', body) ORDER BY id DESC LIMIT 21"
        rows = con.sql(sql).fetchall()
        assert rows == con.sql(sql.replace("LIMIT 21", "")).fetchall()[:21]
        assert [id * 7919 % 100 for (id,) in rows] == [0] * 21
        con.sql(sql)
        assert 2000 <= con.last_query.model_calls <= 2000 * 2.5

    def test_limit_as_a_parameter(self, con):
        sql = "SELECT id FROM t WHERE llm_filter('keep 30', body) AND id > ? LIMIT ? OFFSET ?"
        assert len(con.execute(sql, [10, 5, 2]).fetchall()) == 5
        assert con.last_query.model_calls == 32
        assert len(con.execute(sql.replace("LIMIT ?", "LIMIT NULL"), [3900, 2]).fetchall()) > 20


class TestWhatDuckDBGetsWrong:
    """`reference/peers.md` section 5.1: the plain function was measured at 500,000, 4,096 and twice."""

    def test_join_then_filter(self, con):
        four = "(VALUES (3), (40), (500), (3999)) k(k)"
        con.sql(f"SELECT t.id FROM t JOIN {four} ON t.id = k.k WHERE llm_filter('keep 50', t.body)")
        assert con.last_query.model_calls == 4

    def test_a_cheap_predicate_that_is_written_last(self, con):
        con.sql("SELECT id FROM t WHERE llm_filter('keep 50', body) AND length(body) = 6 AND id % 3 = 0")
        assert con.last_query.model_calls == 4

    def test_select_and_where(self, con):
        sql = "SELECT id, llm('keep 50', body) AS x FROM t WHERE llm('keep 50', body) = 'True' AND id < 100"
        con.sql(sql)
        assert con.last_query.model_calls == 100

    def test_limit_above_a_join_under_a_filter(self, con):
        sql = "SELECT a.id FROM t a JOIN t b ON a.id = b.id WHERE llm_filter('keep 50', a.body) LIMIT 5"
        assert len(con.sql(sql).fetchall()) == 5
        assert con.last_query.model_calls == 32


class TestSemanticJoin:
    def test_pairs_of_distinct_values_not_of_rows(self, con):
        sql = "SELECT count(*) FROM t a JOIN t b ON llm_filter('keep 50', {'x': a.topic, 'y': b.topic})"
        assert con.sql(sql).fetchall() == [(4000 * 4000 * 11 // 20,)]
        assert con.last_query.model_calls == 20 * 20
        assert con.last_query.plan.count("COUNT(*) AS") == 2, "both sides are reduced first"

    def test_the_side_that_repeats_comes_first_in_the_prompt(self, con):
        pairs = con.sql("SELECT DISTINCT b.topic, a.story FROM t a, t b WHERE a.id < 5 AND b.id < 20").to_arrow_table()
        ordering = reorder(pairs)
        assert [pairs.column_names[field] for field in ordering.fields[:, 0]] == ["story"] * 100
        assert ordering.stats.hit_rate > 0.9, "each story is computed once for its twenty topics"
