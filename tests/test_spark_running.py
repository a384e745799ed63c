"""What happens while Spark runs a plan: budgets, errors, counters, filters, LIMIT, the result cache, interrupts."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest

import llmsql
from llmsql import BudgetError, LlmsqlError, ModelError, RowError
from llmsql.budget import Budget
from llmsql.estimate import Estimate
from llmsql.failures import LlmsqlWarning
from llmsql.functions import Call
from llmsql.interruption import InterruptError
from llmsql.statistics import QueryStatistics, RowFailure, StageStatistics
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from spark_session import local_session

import llmsql.spark
from llmsql.spark import llm, llm_filter, where_llm, with_llm
from llmsql.spark.counters import IN_PLACE, Attempt, _CountersParam, last_query, note_query, summed
from llmsql.spark.desk import Account, Desk
from llmsql.spark.reports import Allowance, Report
from llmsql.spark.requirements import check_java

pytestmark = pytest.mark.spark

LLM = Call("llm", "Say")


def answer(prompt, fields, options):
    """'keep 30' holds for 30 % of the numbers that the fields end with; some rows fail, some are slow."""
    text = str(next(iter(fields.values())))
    if "fail" in text:
        raise ValueError("cannot be answered")
    if "slow" in text:
        time.sleep(0.02)
    if "dies" in text:
        import os

        os._exit(3)
    if options["function"] != "llm_filter":
        return f"{prompt} {text}"
    return "Yes" if int(text.split()[-1]) * 7919 % 100 < int(prompt.split()[-1]) else "No"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    session = local_session(tmp_path_factory.mktemp("warehouse"))
    number = session.range(0, 400, 1, 2)
    number.selectExpr(
        "id", "concat('text ', id) AS body", "concat('topic ', id % 20) AS topic"
    ).createOrReplaceTempView("t")
    session.range(200).selectExpr("id", "concat('slow ', id) AS body").createOrReplaceTempView("slow")
    yield session
    session.stop()


@pytest.fixture
def spark(session):
    return llmsql.spark.register(session, model=FakeModel(answer))


def rows(frame):
    return sorted(tuple(row) for row in frame.collect())


class TestFilters:
    TWO = "SELECT id FROM t WHERE llm_filter('keep 90', body) AND llm_filter('keep 5', struct(body AS b))"

    @pytest.mark.spark_cluster
    def test_the_most_selective_first(self, session, spark):
        found = rows(spark.sql(self.TWO))
        first, second = sorted(spark.last_query.stages, key=lambda stage: -stage.asked)
        assert "keep 5" in first.call
        assert first.asked == 400
        assert second.asked < 64 + 400 * 0.1
        assert "keep 5" in spark.last_query.decisions[0].splitlines()[1]
        off = llmsql.spark.register(session, model=FakeModel(answer), order_filters=False)
        assert rows(off.sql(self.TWO)) == found
        assert off.last_query.model_calls == 400 + 360

    @pytest.mark.spark_cluster
    def test_few_distinct_values_go_first(self, spark):
        spark.sql("SELECT id FROM t WHERE llm_filter('keep 20', body) AND llm_filter('keep 80', topic)").collect()
        asked = {stage.call: stage.asked for stage in spark.last_query.stages}
        assert asked["llm_filter('keep 80', topic)"] == 20
        assert asked["llm_filter('keep 20', body)"] < 64 + 400 * 0.85

    def test_limit_asks_tens(self, session, spark):
        sql = "SELECT id FROM t WHERE llm_filter('keep 30', body) LIMIT 5"
        found = rows(spark.sql(sql))
        assert len(found) == 5
        assert all(id * 7919 % 100 < 30 for (id,) in found)
        assert spark.last_query.model_calls == 32
        assert "32 rows looked at for 5" in spark.last_query.decisions[0]
        ordered = "SELECT id FROM t WHERE llm_filter('keep 5', body) ORDER BY id DESC LIMIT 6 OFFSET 2"
        found = [row.id for row in spark.sql(ordered).collect()]
        assert found == [id for id in range(399, -1, -1) if id * 7919 % 100 < 5][2:8]
        assert 150 < spark.last_query.model_calls < 380
        off = llmsql.spark.register(session, model=FakeModel(answer), early_stop=False)
        assert [row.id for row in off.sql(ordered).collect()] == found
        assert off.last_query.model_calls == 400

    @pytest.mark.spark_cluster
    def test_nothing_is_left_of_batches(self, session, spark):
        kept = len(session.sparkContext._jsc.getPersistentRDDs())
        frame = spark.sql(self.TWO + " LIMIT 3")
        assert frame.count() == 3
        assert "__llmsql" not in str(session.sql("SHOW TABLES").collect())
        spark.close()
        assert len(session.sparkContext._jsc.getPersistentRDDs()) <= kept


class TestBudgets:
    @pytest.fixture(scope="class")
    def limited(self, session):
        return llmsql.spark.register(session, model=FakeModel(answer), max_rows=150)

    def test_rows(self, session, limited):
        with pytest.raises(BudgetError, match="needs answers for 200 rows, and max_rows is 150"):
            limited.sql("SELECT llm('Say', body) FROM slow")
        assert limited.last_query.model_calls <= 150
        assert limited.sql("SELECT llm('Say', body) AS x FROM slow WHERE id < 150").count() == 150
        with pytest.raises(BudgetError, match="max_rows is 150"):
            with_llm(session.table("slow"), "x", llm("Say", "body"))

    @pytest.mark.spark_cluster
    def test_rows_of_functions_in_place(self, session, limited):
        frame = session.sql("SELECT llm('Say', body) AS x FROM t WHERE id % 2 = 0")  # 100 rows in each of two tasks
        with pytest.raises(Exception, match="BudgetError: llm: the statement needs answers for 200 rows"):
            frame.collect()
        assert len(frame.limit(10).collect()) == 10

    @pytest.mark.spark_cluster
    def test_seconds(self, session):
        limited = llmsql.spark.register(session, model=FakeModel(answer), max_seconds=1.5)
        with pytest.raises(BudgetError, match=r"stopped after .* seconds, max_seconds is 1\.5"):
            limited.sql("SELECT llm('Say', concat(a.body, b.body)) FROM slow a JOIN slow b ON a.id < b.id")

    @pytest.mark.spark_cluster
    def test_finished_rows_are_kept(self, session, tmp_path):
        register = lambda **limits: llmsql.spark.register(  # noqa: E731
            session, model=FakeModel(answer), cache=tmp_path / "answers.sqlite", **limits
        )
        limited = register(max_rows=150)
        assert limited.sql("SELECT llm('Say', body) AS x FROM slow WHERE id < 120").count() == 120
        assert limited.sql("SELECT llm('Say', body) AS x FROM slow").count() == 200
        assert (limited.last_query.cached, limited.last_query.model_calls) == (120, 80)


class TestInterrupts:
    SLOW = "SELECT llm('Say', concat(a.body, b.body)) AS x FROM slow a JOIN slow b ON a.id < b.id"

    def works(self, spark, sql):
        return spark.last_query.sql == sql and spark.last_query.model_calls > 5

    def test_interrupt(self, spark):
        problem = []

        def work():
            try:
                spark.sql(self.SLOW)
            except Exception as caught:
                problem.append(caught)

        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: self.works(spark, self.SLOW))
        spark.interrupt()
        thread.join(60)
        assert isinstance(problem[0], InterruptError)
        assert "of 19,900 for llm('Say', CONCAT(a.body, b.body))" in str(problem[0])
        assert 5 < spark.last_query.model_calls < 19_900
        until(lambda: not spark.sparkContext.statusTracker().getActiveJobsIds())
        assert spark.sql("SELECT llm('Say', body) AS x FROM t WHERE id < 3").count() == 3

    @pytest.mark.spark_cluster
    def test_control_c(self, spark):
        main, sql = threading.main_thread().ident, self.SLOW + " WHERE a.id >= 0"

        def press():
            import signal

            until(lambda: self.works(spark, sql))
            signal.pthread_kill(main, signal.SIGINT)

        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt, match="interrupted after"):
            spark.sql(sql)
        until(lambda: not spark.sparkContext.statusTracker().getActiveJobsIds())
        assert "__llmsql" not in str(spark.sql("SHOW TABLES").collect())


class TestErrors:
    FAILING = "SELECT id, llm('Say', if(id % 100 = 7, concat('fail ', id % 2), body){}) AS x FROM t"

    def test_bad_rows_are_null_and_told(self, spark):
        with pytest.warns(LlmsqlWarning, match="1 of 397 rows failed"):
            frame = spark.sql(self.FAILING.format(""))
        assert frame.filter("x IS NULL").count() == 4
        assert [failure.error for failure in spark.last_query.errors] == ["ValueError: cannot be answered"]

    @pytest.mark.spark_cluster
    def test_on_error_fail_is_ours(self, spark):
        with pytest.raises(RowError, match=r"llm failed: ValueError: cannot be answered; the row: .*'fail 1'"):
            spark.sql(self.FAILING.format(", on_error => 'fail'"))

    @pytest.mark.spark_cluster
    def test_errors_of_the_last_statement(self, spark):
        assert spark.sql("SELECT llm('Say', 'fail') AS x").count() == 1
        (row,) = spark.sql("SELECT row, error FROM llm_errors() WHERE call LIKE 'llm(%'").collect()
        assert row.error == "ValueError: cannot be answered"
        assert "fail" in row.row

    def test_beside_the_answers(self, session, spark):
        wanted = [(1, "Say fine", None), (2, None, "ValueError: cannot be answered"), (3, None, None)]
        frame = session.createDataFrame([(1, "fine"), (2, "fail"), (3, None)], "id int, x string")
        frame.createOrReplaceTempView("mixed")
        sql = "SELECT id, r.answer, r.error FROM (SELECT id, llm('Say', x, on_error => 'return') AS r FROM mixed)"
        assert rows(spark.sql(sql)) == wanted
        column = llm("Say", "x", on_error="return")
        for answered in (with_llm(frame, "r", column), frame.withColumn("r", column)):
            assert rows(answered.select("id", "r.answer", "r.error")) == wanted
            assert answered.filter("r IS NULL").count() == 1
        passed = spark.sql("SELECT id FROM mixed WHERE llm_filter('keep 50', id, on_error => 'return').answer")
        assert rows(passed) == [(1,), (2,)]

    @pytest.mark.spark_cluster
    def test_tasks_that_die_are_told_by_the_call(self, spark):
        with pytest.raises(ModelError, match=r"llm\('Say', 'it dies'\): Spark could not run the tasks that ask"):
            spark.sql("SELECT llm('Say', 'it dies') AS x")
        assert spark.sql("SELECT llm('Say', 'it lives') AS x").first().x == "Say it lives"


class TestCachedFirst:
    def test_only_what_is_not_known_is_laid_out(self, session, tmp_path, monkeypatch):
        laid_out = []

        def lay_out(asked, stage, found, *rest):
            laid_out.append((found.distinct, asked.count()))
            return layout(asked, stage, found, *rest)

        layout = llmsql.spark.asking.lay_out
        monkeypatch.setattr(llmsql.spark.asking, "lay_out", lay_out)
        path = tmp_path / "answers.sqlite"
        spark = llmsql.spark.register(session, model=FakeModel(answer), cache=path)
        sql = "SELECT id, llm('Say', if(id = 7, NULL, body)) AS x FROM t"
        spark.sql(sql + " WHERE id < 300").collect()
        found = rows(spark.sql(sql))
        assert laid_out == [(300, 300), (100, 100)]
        assert (spark.last_query.cached, spark.last_query.model_calls) == (299, 100)
        assert rows(spark.sql(sql)) == found
        assert len(laid_out) == 2
        off = llmsql.spark.register(session, model=FakeModel(answer), cache=path, cached_first=False)
        assert rows(off.sql(sql)) == found
        assert laid_out[2:] == [(400, 400)]
        assert (off.last_query.cached, off.last_query.model_calls) == (399, 0)


class TestDryRun:
    SQL = "SELECT llm('Say', body) AS x FROM t WHERE llm_filter('keep 30', topic) AND id < 100"

    @pytest.mark.spark_cluster
    def test_same_as_in_duckdb(self, spark):
        with llmsql.connect(model=FakeModel(answer)) as con:
            con.execute("CREATE TABLE t AS SELECT range AS id, 'text ' || range AS body FROM range(400)")
            con.execute("CREATE OR REPLACE TABLE t AS SELECT *, 'topic ' || id % 20 AS topic FROM t")
            wanted = con.dry_run(self.SQL)
            found = spark.dry_run(self.SQL)
            names = ("certainty", "rows", "distinct", "cached", "to_run")
            assert found.to_arrow().select(names).to_pylist() == wanted.to_arrow().select(names).to_pylist()
        assert found.stages[0].to_run == 20
        once = "SELECT llm('Say', body) FROM (SELECT * FROM t ORDER BY id LIMIT 3)"
        assert spark.dry_run(once).stages[0].to_run == 3, "also with a part that is computed once"
        assert llmsql.spark.statistics(spark).model_calls == 0
        assert "__llmsql" not in str(spark.sql("SHOW TABLES").collect())

    @pytest.mark.spark_cluster
    def test_explain(self, spark):
        (row,) = spark.sql("EXPLAIN " + self.SQL).collect()
        assert "100 rows → 20 distinct → 0 cached → 20 to run" in row.plan
        assert "at most 100 rows → 100 distinct" in row.plan
        assert "Physical Plan" in row.plan


class TestCounters:
    @pytest.mark.spark_cluster
    def test_of_a_dataframe(self, session, spark):
        frame = where_llm(session.table("t"), llm_filter("keep 30", "topic"))
        (stage,) = spark.last_query.stages
        assert (stage.rows, stage.distinct, stage.asked, stage.failed) == (400, 20, 20, 0)
        assert spark.last_query.seconds > 0
        assert frame.count() == 140
        assert llmsql.spark.statistics(spark).model_calls == 20

    @pytest.mark.spark_cluster
    def test_progress_is_shown_as_rows_are_done(self, session, capfd):
        shown = llmsql.spark.register(session, model=FakeModel(answer), progress=True)
        shown.sql("SELECT llm('Say', body) AS x FROM slow")
        assert "200/200 rows" in capfd.readouterr().err

    @pytest.mark.spark_cluster
    def test_functions_in_place_count_since_the_query_began(self):

        class Session:
            """Stands for one."""

        session = Session()
        counters = SimpleNamespace(value={(LLM, Attempt(0, 0, 0)): StageStatistics(asked=3, place=IN_PLACE)})
        note_query(session, QueryStatistics(stages=[StageStatistics(asked=1)]), counters)
        assert last_query(session).model_calls == 1
        counters.value[LLM, Attempt(1, 0, 1)] = StageStatistics(asked=5, place=IN_PLACE)
        counters.value[LLM, Attempt(1, 1, 2)] = StageStatistics(asked=7, place="WHERE")
        assert last_query(session).model_calls == 6

    def test_attempts_at_one_partition_count_once(self):
        def part(asked):
            return StageStatistics(call="llm", asked=asked, rows=asked)

        param = _CountersParam()
        total = param.zero({})
        for stage, partition, number, asked in (
            (1, 0, 10, 3),
            (1, 0, 10, 2),
            (1, 1, 11, 4),
            (1, 0, 12, 5),
            (2, 0, 13, 1),
        ):
            param.addInPlace(total, {(LLM, Attempt(stage, partition, number)): part(asked)})
        assert summed(total)[LLM].asked == 5 + 4 + 1
        for number in range(5000):
            param.addInPlace(total, {(LLM, Attempt(3, number, number)): part(1)})
        assert summed(total)[LLM].asked == 10 + 5000
        param.addInPlace(total, {(LLM, Attempt(4, 0, 6000)): part(1)})
        assert len(total) < 5002

    def test_the_latest_failed_rows_are_kept(self):
        param = _CountersParam()
        total = param.zero({})
        for number in range(9):
            part = StageStatistics(asked=700, failed=700)
            part.failures = [RowFailure("llm", {"x": number}, "no")] * 700
            param.addInPlace(total, {(LLM, Attempt(number, 0, number)): part})
        assert [len(part.failures) for part in total.values()] == [0] * 6 + [600, 700, 700]
        assert summed(total)[LLM].failed == 6300


class TestDesk:
    @pytest.fixture
    def desk(self):
        desk = Desk("127.0.0.1", "127.0.0.1")
        yield desk
        desk.close()

    def report(self, desk, account, number=0, name="statement"):
        desk.open(name, account)
        report = Report(Allowance(desk.line(name), 1, 1, None), "stage")
        report._attempt = Attempt(1, number, number)
        return closing(report)

    def test_rows_are_granted_once_for_all_tasks(self, desk):
        account = Account(Budget(max_rows=10))
        with self.report(desk, account, 0) as one, self.report(desk, account, 1) as other:
            one.take_rows(LLM, 6)
            other.take_rows(LLM, 4)
            with pytest.raises(BudgetError, match="needs answers for 11 rows, and max_rows is 10"):
                one.take_rows(LLM, 1)
            other._next = 0.0
            with pytest.raises(BudgetError, match="max_rows is 10"):
                other.look()

    def test_late_tasks_of_a_stopped_statement_stop_too(self, desk):
        account = Account(Budget())
        with self.report(desk, account) as report:
            account.stop(BudgetError("too much"))
            desk.forget("statement")
            assert account not in desk._queries.values(), "its error holds all of the statement"
            with pytest.raises(BudgetError, match="too much"):
                report.look()

    def test_tokens(self, desk):
        account = Account(Budget(max_tokens=100))
        with self.report(desk, account) as report:
            report.expect_tokens(LLM, Estimate(3, 90, 90))
            statistics = StageStatistics(computed_tokens=60, output_tokens=41)
            with report.watching(statistics):
                report._next = 0.0
                with pytest.raises(BudgetError, match="stopped after 101 tokens, max_tokens is 100"):
                    statistics.tick()
        assert account.budget.tokens == 101

    def test_an_attempt_that_failed_counts_with_what_it_asked(self, desk):
        account = Account(Budget(max_rows=10))
        with self.report(desk, account) as first:
            first.take_rows(LLM, 8)
            with first.watching(StageStatistics(asked=2)):
                pass
        with self.report(desk, account) as second:
            second._attempt = Attempt(1, 0, 7)
            second.take_rows(LLM, 8)
            with pytest.raises(BudgetError):
                second.take_rows(LLM, 1)

    def test_garbage_and_strangers_are_hung_up_on(self, desk):
        line = desk.line("statement")
        for text in (b"hello\n", b"[]\n", b'{"token": "x"}\n', b"x" * 100_000):
            answer = b""
            with suppress(OSError), socket.create_connection((line.host, line.port), timeout=20) as caller:
                caller.sendall(text)
                caller.shutdown(socket.SHUT_WR)
                answer = caller.recv(100)  # nothing, or the connection is reset before
            assert answer == b""
        with self.report(desk, Account(Budget())) as report:
            report.look()
            assert report._socket is not None

    def test_without_a_driver_a_task_keeps_to_the_limits_itself(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        from llmsql.spark.reports import Line

        with closing(Report(Allowance(Line("127.0.0.1", port, "x", "y"), max_rows=3), "stage")) as report:
            report.take_rows(LLM, 3)
            with pytest.raises(BudgetError, match="max_rows is 3"):
                report.take_rows(LLM, 1)

    def test_a_task_stops_when_its_driver_is_gone(self):
        desk = Desk("127.0.0.1", "127.0.0.1")
        with self.report(desk, Account(Budget())) as report:
            report.look()
            desk.close()
            report._socket.shutdown(socket.SHUT_RDWR)
            report._next = 0.0
            with pytest.raises(LlmsqlError, match="driver, for which this task works, is gone"):
                report.look()


def until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
