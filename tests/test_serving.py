"""One engine for several clients: equal answers, errors that say what is wrong, and a server that lives."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import llmsql
from llmsql import BudgetError, CallError, ModelError, RowError, SettingError
from llmsql.estimate import Estimate
from llmsql.functions import make_call
from llmsql.model import Answer, Measure
from llmsql.serving import protocol
from llmsql.serving.engine_client import EngineClient, LostError
from llmsql.serving.protocol import Question, flight
from llmsql.serving.remote_model import RemoteModel
from llmsql.serving.server import EngineServer, Limits, is_private
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics
from llmsql.testing import FakeModel

TOKEN = "open sesame"
CALL = make_call("llm", "Say")
WAIT = 30  # seconds until a test says that something hangs


def describe(prompt, fields, options):
    """A pure function of all that a model is given."""
    if fields.get("x") == "bad":
        raise ValueError("too bad")
    seen = f"{prompt}|" + "|".join(f"{name}={value!r}" for name, value in sorted(fields.items()))
    return options["choices"][len(seen) % len(options["choices"])] if "choices" in options else seen


class CountingModel(FakeModel):
    """A FakeModel with tokens: each row has ten, of which four are computed."""

    def answer(self, call, fields, settings, statistics):
        statistics.predicted_hit_rate = 0.5
        for answer in super().answer(call, fields, settings, statistics):
            statistics.prompt_tokens += 10
            statistics.computed_tokens += 4
            statistics.output_tokens += 1
            statistics.model_seconds += 0.5
            yield replace(answer, truncated=answer.row == 1)

    def estimate(self, call, fields, settings):
        return Estimate(fields.num_rows, 10 * fields.num_rows, 4 * fields.num_rows)


class SteppedModel:
    """Answers a row whenever the test says so; knows what was asked and whether the caller went away."""

    def __init__(self):
        self.steps = threading.Semaphore(0)
        self.asked = self.answered = 0
        self.started, self.closed = threading.Event(), threading.Event()

    def answer(self, call, fields, settings, statistics):
        self.asked += fields.num_rows
        self.started.set()
        try:
            for row in range(fields.num_rows):
                while not self.steps.acquire(timeout=0.02):
                    statistics.tick()
                self.answered += 1
                yield Answer(row, f"row {fields.column(0)[row]}")
        finally:
            self.closed.set()

    def close(self):
        pass


@contextmanager
def served(model, **options):
    options = {"name": "fake", "token": TOKEN, "fingerprint": lambda: b"one", **options}
    server = EngineServer(model, **options)
    try:
        yield server
    finally:
        assert server.stop(), "the server did not end"


def address(server):
    return f"grpc://127.0.0.1:{server.port}"


@contextmanager
def client(server, **options):
    opened = RemoteModel("the engine", lambda: EngineClient(address(server), TOKEN), **options)
    with closing(opened):
        yield opened


def ask(model, fields, call=CALL, **settings):
    statistics = StageStatistics()
    return sorted(model.answer(call, fields, Settings(**settings), statistics), key=lambda a: a.row), statistics


def connect(server, **options):
    return llmsql.connect(engine=address(server), token=TOKEN, **options)


def eventually(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


SQL = """SELECT i, llm('Say', i, d, s, l, e, b), llm_filter('Is it?', s), llm_classify('Which?', ['a', 'b'], d, l),
llm_score('How much?', t, max := 3) FROM rows ORDER BY i"""
ROWS = """CREATE TABLE rows AS SELECT * FROM (VALUES
(1, 1.50::DECIMAL(9, 2), {'a': 1, 'b': NULL}, ['x', NULL], 'u'::ENUM('u', 'v'), DATE '2024-02-29', '\\xff'::BLOB),
(2, NULL, NULL, [], 'v'::ENUM('u', 'v'), NULL, NULL),
(3, -0.01::DECIMAL(9, 2), {'a': NULL, 'b': 'é "q"'}, NULL, NULL, TIMESTAMP '1999-12-31 23:59:59', ''::BLOB))
v(i, d, s, l, e, t, b)"""


class TestSameAsEmbedded:
    def run(self, con):
        con.execute(ROWS)
        rows = con.sql(SQL).fetchall()
        con.sql("SELECT llm('Say', x) FROM (VALUES ('bad'), ('good')) v(x)")
        return rows, [(stage.call, stage.rows, stage.asked, stage.failed) for stage in con.last_query.stages]

    @pytest.mark.filterwarnings("ignore::llmsql.failures.LlmsqlWarning")
    def test_from_sql(self):
        with llmsql.connect(model=FakeModel(describe)) as con:
            expected = self.run(con)
        with served(FakeModel(describe)) as server:
            with connect(server, cache=False) as con:
                assert self.run(con) == expected
                (failure,) = con.last_query.errors
                assert (failure.values, failure.error) == ({"x": "bad"}, "ValueError: too bad")

    @given(
        st.lists(
            st.tuples(
                st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=5)),
                st.one_of(st.none(), st.integers(-(2**40), 2**40)),
                st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), max_size=3)),
            ),
            min_size=1,
            max_size=40,
        ),
        st.integers(400, 3000),
    )
    @examples(max_examples=25, deadline=None)
    def test_any_table_in_requests_of_any_size(self, rows, limit):
        texts, numbers, lists = zip(*rows)
        fields = pa.table(
            {"t": pa.array(texts).cast(pa.string()).dictionary_encode(), "n": pa.array(numbers, pa.int64()), "l": lists}
        ).cast(
            pa.schema([("t", pa.dictionary(pa.int32(), pa.string())), ("n", pa.int64()), ("l", pa.list_(pa.float64()))])
        )
        fake = FakeModel(describe)
        expected, _ = ask(fake, fields)
        with served(fake, limits=Limits(max_request_bytes=limit)) as server, client(server) as model:
            assert ask(model, fields)[0] == expected
        assert fake.calls == 2 * len(rows)

    def test_counters_limits_and_budgets(self):
        with served(CountingModel(describe)) as server:
            with connect(server, cache=False) as con:
                con.sql("SELECT llm('Say', x) FROM range(30) t(x)")
                (stage,) = con.last_query.stages
                assert (stage.prompt_tokens, stage.computed_tokens, stage.output_tokens) == (300, 120, 30)
                assert (stage.model_seconds, stage.predicted_hit_rate, stage.truncated) == (15.0, 0.5, 1)
            with connect(server, cache=False, max_tokens=100) as con:
                with pytest.raises(
                    BudgetError, match="30 prompts have 300 tokens, of which about 120 must be computed"
                ):
                    con.sql("SELECT llm('Say', x) FROM range(30) t(x)")
                assert con.last_query.prompt_tokens == 0
            with client(server) as model:
                assert model.about["max_request_bytes"] == Limits().max_request_bytes
                assert model.about["pid"] == os.getpid()
                assert model.fingerprint == b"one"
                assert model.estimate(CALL, pa.table({"x": range(7)}), Settings()) == Estimate(7, 70, 28)

    def test_measure(self):
        fake = FakeModel(describe, context=99)
        items = pa.array([{"a": 1, "b": None}, {"a": 22, "b": "x"}])
        with served(fake) as server, client(server) as model:
            for some in (items, items.slice(0, 0)):
                assert model.measure(CALL, "l", some, Settings()) == fake.measure(CALL, "l", some, Settings())
        with served(SteppedModel()) as server, client(server) as model:
            assert model.measure(CALL, "l", items, Settings()) == Measure(None, [0, 0])

    def test_options_and_settings_travel(self):
        fake = FakeModel(lambda prompt, fields, options: repr(sorted(options.items())))
        call = make_call("llm", "Say", options={"regex": "[a-z]+", "seed": 3, "temperature": 0.5, "system": "Be brief"})
        with served(fake) as server, client(server) as model:
            fields = pa.table({"x": ["a"]})
            assert ask(model, fields, call) == ask(fake, fields, call)
        for sent in (call, make_call("llm_score", "Rate"), make_call("llm_extract", "Who?", "STRUCT(name VARCHAR)")):
            question = Question("answer", sent, Settings(reorder=False, max_output_tokens=7), "name", 5, b"f", True)
            read = Question.from_bytes(question.to_bytes())
            assert read == replace(question, settings=Settings(reorder=False, max_output_tokens=7))

    @pytest.mark.parametrize("name", ["embedded", "batch_prompts", "list_prompts"])
    def test_every_setting_that_the_engine_reads_is_sent(self, name):
        tree = ast.parse(Path(llmsql.__file__).with_name(f"{name}.py").read_text())
        read = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings"
        }
        assert read <= set(protocol.SETTINGS)


class TestErrors:
    @pytest.mark.parametrize("problem", [ModelError("no weights é"), CallError("no such regex"), RowError("row 3: x")])
    def test_failures_of_a_call_keep_type_and_text(self, problem):
        class Failing(FakeModel):
            def answer(self, *arguments):
                yield Answer(0, "first")
                raise problem

        with served(Failing(describe)) as server, client(server) as model:
            answers = model.answer(CALL, pa.table({"x": ["a", "b"]}), Settings(), StageStatistics())
            assert next(answers) == Answer(0, "first")
            with pytest.raises(type(problem)) as caught:
                next(answers)
            assert str(caught.value) == str(problem)

    def test_what_nobody_expected_says_what_it_is(self, caplog):
        class Failing(FakeModel):
            def answer(self, *arguments):
                raise ZeroDivisionError("x" * 9999)

        with served(Failing(describe)) as server, client(server) as model:
            with pytest.raises(ModelError, match="the engine failed: ZeroDivisionError: xxx"):
                ask(model, pa.table({"x": ["a"]}))

    def test_on_error_fail(self):
        with served(FakeModel(describe)) as server, connect(server, cache=False) as con:
            with pytest.raises(RowError, match="ValueError: too bad; the row: x='bad'"):
                con.sql("SELECT llm('Say', x, on_error := 'fail') FROM (VALUES ('bad'), ('good')) v(x)")
            assert con.sql("SELECT llm('Say', x) FROM (VALUES ('good')) v(x)").fetchall() == [("Say|x='good'",)]

    def test_no_server_wrong_token_other_model(self, monkeypatch):
        with served(FakeModel(describe), name="/models/tiny") as server:
            with pytest.raises(
                ModelError, match=r"refuses the token: it is wrong or missing \(token=…, or \$LLMSQL_TO"
            ):
                llmsql.connect(engine=address(server))
            with pytest.raises(ModelError, match="refuses the token"):
                llmsql.connect(engine=address(server), token="opensesame")
            with pytest.raises(ModelError, match="has the model '/models/tiny', not 'huge'"):
                connect(server, model="huge")
            monkeypatch.setenv("LLMSQL_TOKEN", TOKEN)
            with llmsql.connect(engine=address(server), model="tiny") as con:
                with pytest.raises(ModelError, match="has the model '/models/tiny', not 'demo'"):
                    con.sql("SELECT llm('Say', 1, model := 'demo')")
        with pytest.raises(ModelError, match=r"the engine at grpc://127.0.0.1:\d+ cannot be reached: .*refused"):
            llmsql.connect(engine=address(server))

    def test_a_forked_process_is_told(self, monkeypatch):
        with served(FakeModel(describe)) as server, client(server) as model:
            monkeypatch.setattr("os.getpid", lambda: -1)
            with pytest.raises(ModelError, match="this process was forked from one that uses the engine"):
                ask(model, pa.table({"x": ["a"]}))

    def test_something_else_listens_there(self):
        class Other(flight.FlightServerBase):
            def do_action(self, context, action):
                return [b"hello"]

        for kind in (Other, flight.FlightServerBase):
            with kind("grpc://127.0.0.1:0") as other:
                with pytest.raises(ModelError, match="it is no llmsql engine"):
                    llmsql.connect(engine=address(other))

    def test_other_version(self, monkeypatch):
        with served(FakeModel(describe)) as server:
            with client(server) as model:
                assert model.about["protocol"] == protocol.PROTOCOL
                command = json.loads(Question("answer", CALL).to_bytes())
                command["protocol"] = 99
                with pytest.raises(
                    ModelError, match=r"the client speaks version 99 of the protocol .* and this engine ver"
                ):
                    Question.from_bytes(json.dumps(command).encode())
            real = json.dumps
            monkeypatch.setattr("llmsql.serving.server.json.dumps", lambda v: real({**v, "protocol": 99}))
            with pytest.raises(
                ModelError, match=r"speaks version 99 of the protocol .*: install the same llmsql on both"
            ):
                connect(server)

    def test_settings(self):
        for options, message in (
            ({"engine": "http://x"}, "'engine' must be 'process', 'node' or an address"),
            ({"engine": 5}, "'engine' must be"),
            ({"engine": "grpc://host"}, "an address such as 'grpc://host:port', not 'grpc://host'"),
            ({"engine": "grpc://x:1", "token": "é"}, "the token must be of printable ASCII"),
            ({"token": "x"}, "'token' is for an engine at an address"),
            ({"engine": "grpc://x:1", "tls_root": "r.pem"}, "'tls_root' is for an engine at 'grpc\\+tls://"),
            ({"engine": "grpc+tls://x:1", "tls_root": "/no.pem"}, "/no.pem cannot be read: No such file"),
            ({"engine": "grpc://x:1", "dtype": "float32"}, "'dtype' is the engine's own"),
            ({"engine": "node", "engine_linger": -1}, "'engine_linger' must be seconds"),
        ):
            with pytest.raises(SettingError, match=message):
                llmsql.connect(**options)
        assert "secret" not in repr(Settings.make({"engine": "grpc://x:1", "token": "secret"}))
        for host in ("0.0.0.0", "[::]", "127.evil.example", "10.0.0.1"):
            with pytest.raises(SettingError, match=r"can be reached from other machines: give a token"):
                EngineServer(FakeModel(describe), name="x", location=f"grpc://{host}:0")
        assert all(is_private(f"grpc://{host}:1") for host in ("localhost", "127.1.2.3", "[::1]"))

    def test_where_nothing_can_listen(self):
        with served(FakeModel(describe)) as server:
            for where, reason in (
                (address(server), "Address already in use"),
                ("grpc://127.0.0.1:99999", "port must be 0-65535"),
                ("grpc://192.0.2.77:0", "assign requested address"),
                ("grpc://no.such.invalid:0", "(?i:name)"),
            ):
                with pytest.raises(ModelError, match=f"nothing can listen at {where}: .*({reason})"):
                    EngineServer(FakeModel(describe), name="x", location=where, token="x")


class TestBadClients:
    """Whatever a client sends, it is told what is wrong, and the next one is served."""

    @pytest.fixture
    def server(self):
        with served(FakeModel(describe), limits=Limits(max_request_bytes=100_000)) as server:
            yield server
            with client(server) as model:
                assert ask(model, pa.table({"x": ["a"]}))[0] == [Answer(0, "Say|x='a'")]

    def send(self, server, command, batches, token=TOKEN):
        options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
        with flight.FlightClient(address(server)) as raw:
            with pytest.raises((flight.FlightError, pa.ArrowException)) as caught:
                transfer(raw, flight.FlightDescriptor.for_command(command), options, batches)
        said = protocol.read_failure(caught.value)
        return str(said or caught.value)

    def test_garbage(self, server):
        for data in (
            b"\x00" * 999,
            os.urandom(9999),
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(data)
        good = pa.record_batch({"x": ["a"]})
        for command in (b"", b"\xff\xfe", b"[]", b"7", b'{"method": "answer"}'):
            assert "the request is not one of llmsql's" in self.send(server, command, [good])

    def test_connections_that_say_nothing(self, server):
        with ExitStack() as silent:
            for _ in range(200):
                silent.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            with client(server) as model:
                assert ask(model, pa.table({"x": ["a"]}))[0] == [Answer(0, "Say|x='a'")]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "drop"}, "there is no method 'drop'"),
            ({"settings": {}}, "KeyError"),
            (
                {"settings": {"reorder": 5, "follow_earlier": True, "max_output_tokens": 3}},
                "'reorder' must be True or False",
            ),
            ({"call": 5}, "malformed"),
            ({"call": "{}"}, "malformed"),
            ({"call": {"prompt": None}}, "'prompt' is None"),
            ({"call": {"function": "rm"}}, "no function 'rm'"),
            ({"call": {"max_tokens": 0}}, "'max_tokens' is 0"),
            ({"call": {"temperature": "hot"}}, "'temperature' is 'hot'"),
            ({"call": {"choices": [1]}}, "'choices' is"),
            ({"call": {"schema": "[]"}}, "'schema' is no object"),
            ({"call": {"return_type": "NONSENSE"}}, "malformed"),
            ({"fingerprint": "zz"}, "malformed"),
            ({"fingerprint": "00"}, "started again with another model"),
        ],
        ids=str,
    )
    def test_malformed_requests(self, server, changes, message):
        parts = json.loads(Question("answer", CALL).to_bytes())
        if isinstance(changes.get("call"), dict):
            changes = {"call": json.dumps({**json.loads(parts["call"]), **changes["call"]})}
        said = self.send(server, json.dumps({**parts, **changes}).encode(), [pa.record_batch({"x": ["a"]})])
        assert message in said

    def test_wrong_tables(self, server):
        command = Question("answer", CALL).to_bytes()
        twice = pa.record_batch([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
        assert "fields need names of their own" in self.send(server, command, [twice])
        assert "fields need names of their own" in self.send(server, command, [pa.record_batch([], names=[])])
        # Offsets that point far behind the text.
        offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 3)))
        wrong = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"abc"))
        assert "malformed" in self.send(server, command, [pa.record_batch([wrong], names=["x"])])
        self.send(server, command, [])

    def test_a_request_of_a_gigabyte(self, server):
        megabyte = pa.record_batch({"x": ["a" * 2**20]})
        said = self.send(server, Question("answer", CALL).to_bytes(), [megabyte] * 1024)
        assert "larger than this engine takes: 1,048,5" in said
        assert "limit is 100,000 (max_request_bytes)" in said
        declared = replace(Question("answer", CALL), size=2**30).to_bytes()
        assert "1,073,741,824 bytes or more" in self.send(server, declared, [megabyte])
        nothing = pa.record_batch([pa.nulls(10**6)], names=["x"])  # takes no bytes at all
        assert "larger than this engine takes" in self.send(server, Question("answer", CALL).to_bytes(), [nothing])

    def test_a_row_that_is_too_large_fails_alone(self, server):
        with client(server) as model:
            (first, second, third), _ = ask(model, pa.table({"x": ["a", "b" * 200_000, "c"]}))
            assert (first.text, third.text) == ("Say|x='a'", "Say|x='c'")
            assert second.error.startswith("the row has 200,0")

    def test_wrong_token_reads_nothing(self, server, caplog):
        batches = [pa.record_batch({"x": ["a"]})]
        assert "wrong token" in self.send(server, Question("answer", CALL).to_bytes(), batches, token="guess")
        assert "without the right token" in caplog.text


class TestManyClients:
    def test_calls_meet_in_the_model(self):
        meeting = threading.Barrier(4, timeout=WAIT)

        class Meeting(FakeModel):
            def answer(self, call, fields, settings, statistics):
                meeting.wait()  # breaks unless all four are here
                yield from super().answer(call, fields, settings, statistics)

        with served(Meeting(describe)) as server, client(server) as one, client(server) as other:
            found = {}

            def work(number):
                found[number], _ = ask((one, other)[number % 2], pa.table({"x": [number] * 3}))

            in_threads(work, 4)
            assert found == {n: [Answer(row, f"Say|x={n}") for row in range(3)] for n in range(4)}

    def test_only_so_many_at_once(self):
        running = []

        def one_at_a_time(prompt, fields, options):
            running.append(1)
            assert len(running) == 1
            time.sleep(0.01)
            running.pop()
            return "x"

        with served(FakeModel(one_at_a_time), limits=Limits(max_requests=1)) as server, client(server) as model:
            found = {}

            def work(number):
                found[number], _ = ask(model, pa.table({"x": [1, 2, 3]}))

            in_threads(work, 3)
        assert all(answer.text == "x" for answers in found.values() for answer in answers)

    @pytest.mark.parametrize("way", ["sends", "reads"])
    def test_who_neither_sends_nor_reads_lets_others_go_first(self, way, monkeypatch):
        """As a client whose machine has died: its connection does not end."""
        monkeypatch.setattr("llmsql.serving.turns.PATIENCE", 0.2)
        fake = FakeModel(lambda prompt, fields, options: fields["x"] * 50)
        rows = [str(number) * 1000 for number in range(1000)]
        options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
        descriptor = flight.FlightDescriptor.for_command(Question("answer", CALL).to_bytes())
        with served(fake, limits=Limits(max_requests=1)) as server, flight.FlightClient(address(server)) as raw:
            writer, reader = raw.do_exchange(descriptor, options)
            table = pa.table({"x": rows})
            writer.begin(table.schema)
            batches = list(protocol.messages(table))
            for batch in batches[:1] if way == "sends" else batches:
                writer.write_batch(batch)
            if way == "reads":
                writer.done_writing()
            with client(server) as model:
                for _ in range(2):
                    assert ask(model, pa.table({"x": ["a"]}))[0] == [Answer(0, "a" * 50)]
            if way == "sends":
                for batch in batches[1:]:
                    writer.write_batch(batch)
                writer.done_writing()
            found = {}
            with suppress(StopIteration):
                while True:
                    chunk = reader.read_chunk()
                    found.update({a.row: a.text for a in protocol.read_answers(chunk.data)} if chunk.data else {})
            assert [found[row] for row in range(len(rows))] == [text * 50 for text in rows]
            writer.close()

    def test_an_answer_that_nobody_reads_is_not_made(self):
        class Endless(FakeModel):
            made = 0

            def answer(self, call, fields, settings, statistics):
                for row in range(fields.num_rows):
                    self.made += 1
                    yield Answer(row, "x" * 10_000)

        endless = Endless(describe)
        with served(endless, limits=Limits(max_request_bytes=2**30)) as server, client(server) as model:
            answers = model.answer(CALL, pa.table({"x": range(100_000)}), Settings(), StageStatistics())
            next(answers)
            before = -1
            while endless.made > before:  # until it stands still
                before = endless.made
                time.sleep(0.3)
            assert endless.made < 60_000
            answers.close()

    @pytest.mark.parametrize("way", ["close", "vanish"])
    def test_a_client_that_goes_away_ends_its_call(self, way):
        stepped = SteppedModel()
        with served(stepped) as server:
            with client(server) as model:
                answers = model.answer(CALL, pa.table({"x": range(9)}), Settings(), StageStatistics())
                stepped.steps.release()
                assert next(answers) == Answer(0, "row 0")
                if way == "close":
                    answers.close()
                else:
                    model.close()
                assert stepped.closed.wait(WAIT)
                stepped.steps.release(9)
                assert stepped.answered == 1
            stepped.closed.clear()
            with client(server) as model:
                assert len(ask(model, pa.table({"x": range(4)}))[0]) == 4

    def test_who_watches_the_work_can_stop_it(self):
        class Working(FakeModel):
            def answer(self, call, fields, settings, statistics):
                for _ in range(WAIT * 100):
                    statistics.computed_tokens += 1
                    time.sleep(0.01)
                    try:
                        statistics.tick()
                    except BaseException:
                        self.stopped.set()
                        raise
                yield Answer(0, "late")

        working = Working(describe)
        working.stopped = threading.Event()
        with served(working) as server, client(server) as model:
            statistics = StageStatistics()

            def watch():
                if statistics.computed_tokens > 20:
                    raise BudgetError("enough")

            statistics.watchers.append(watch)
            with pytest.raises(BudgetError, match="enough"):
                next(model.answer(CALL, pa.table({"x": [1]}), Settings(), statistics))
            assert working.stopped.wait(WAIT)

    def test_ctrl_c_does_not_wait_for_an_answer(self):
        """Waiting in Python, not in Flight, is what lets SIGINT through."""
        stepped = SteppedModel()
        with served(stepped) as server, client(server) as model:
            answers = model.answer(CALL, pa.table({"x": range(2)}), Settings(), StageStatistics())

            def interrupt():
                stepped.started.wait(WAIT)  # so the main thread is waiting for the answer
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                next(answers)
            assert stepped.closed.wait(WAIT)


class TestServerGoes:
    def test_in_the_middle_of_a_call(self, tmp_path):
        stepped = SteppedModel()
        with served(stepped) as server:
            con = connect(server, cache=str(tmp_path / "cache"), batch_rows=3)
            location, port = f"grpc://127.0.0.1:{server.port}", server.port
            problem = []

            def work(_):
                with pytest.raises(ModelError) as caught:
                    con.sql("SELECT llm('Say', x) FROM range(5) t(x)")
                problem.append(str(caught.value))

            thread = threading.Thread(target=work, args=(0,))
            thread.start()
            stepped.steps.release(2)
            eventually(lambda: con.cache.info().answers == 2)
        thread.join(WAIT)
        assert "2 of 3 rows were answered before (answers that were finished are in the result cache" in problem[0]
        with pytest.raises(ModelError, match="cannot be reached"):
            con.sql("SELECT llm('Say', x) FROM range(5) t(x)")
        again = SteppedModel()
        again.steps.release(9)
        with served(again, location=location):
            assert port == int(location.rsplit(":", 1)[1])
            rows = con.sql("SELECT x, llm('Say', x) FROM range(5) t(x) ORDER BY x").fetchall()
            assert rows == [(x, f"row {x}") for x in range(5)]
            assert again.asked == 3, "two rows come from the cache"
        with served(FakeModel(describe), location=location, fingerprint=lambda: b"two"):
            with pytest.raises(ModelError, match="started again with another model: connect again"):
                con.sql("SELECT llm('Say', x) FROM range(6) t(x)")
        con.close()

    def test_lease(self):
        with served(FakeModel(describe)) as server:
            one, two = (EngineClient(address(server), TOKEN) for _ in range(2))
            one.hold()
            two.hold()
            assert server.leases == 2
            two.close()
            eventually(lambda: server.leases == 1)
            stop = threading.Event()
            patience = {"first": 9, "awaited": lambda: True}
            ended = threading.Thread(target=server.end_when_unused, args=(0.1, stop), kwargs=patience)
            ended.start()
            time.sleep(0.5)
            assert ended.is_alive()
            one.close()
            ended.join(WAIT)
            three = EngineClient(address(server), TOKEN)
            with pytest.raises(LostError, match="the engine is ending"):
                three.hold()
            three.close()

    def test_who_started_it_is_gone_before_it_came(self):
        with served(FakeModel(describe)) as server:
            there, stop = threading.Event(), threading.Event()
            there.set()
            patience = {"first": 600, "awaited": there.is_set}
            ended = threading.Thread(target=server.end_when_unused, args=(0.1, stop), kwargs=patience)
            ended.start()
            time.sleep(0.5)
            assert ended.is_alive()
            there.clear()
            ended.join(WAIT)
            assert not ended.is_alive()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
class TestTls:
    def test_encrypted(self, tmp_path):
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command, *names], check=True, capture_output=True)
        files = {"location": "grpc+tls://127.0.0.1:0", "certificate": (certificate, key)}
        with served(FakeModel(describe), **files) as server:
            at = f"grpc+tls://127.0.0.1:{server.port}"
            with llmsql.connect(engine=at, token=TOKEN, tls_root=certificate, cache=False) as con:
                assert con.sql("SELECT llm('Say', 1 AS x)").fetchall() == [("Say|x=1",)]
            with pytest.raises(ModelError, match=r"(?i)cannot be reached.*certificate.*tls_root="):
                llmsql.connect(engine=at, token=TOKEN)
            with pytest.raises(ModelError, match=r"cannot be reached.*its address begins with grpc\+tls://"):
                connect(server)
            with pytest.raises(SettingError, match="has no certificate in it"):
                llmsql.connect(engine=at, token=TOKEN, tls_root=key)
            with pytest.raises(ModelError, match="the engine's certificate is for other host names"):
                llmsql.connect(engine=at.replace("127.0.0.1", "localhost"), token=TOKEN, tls_root=certificate)
        with served(FakeModel(describe)) as server:
            with pytest.raises(ModelError, match="the engine is without TLS: its address begins with grpc://"):
                llmsql.connect(engine=address(server).replace("grpc:", "grpc+tls:"), token=TOKEN)
        old = tmp_path / "old.pem"
        signed = ["-x509toreq", "-signkey", str(key), "-in", str(certificate), "-out", str(tmp_path / "request")]
        subprocess.run(["openssl", "x509", *signed], check=True, capture_output=True)
        signed = ["-req", "-signkey", str(key), "-in", str(tmp_path / "request"), "-days", "-1", "-out", str(old)]
        if subprocess.run(["openssl", "x509", *signed], capture_output=True).returncode == 0:  # not with all versions
            with served(FakeModel(describe), **{**files, "certificate": (old, key)}) as server:
                with pytest.raises(ModelError, match=r"has expired.*the engine's certificate must be renewed"):
                    llmsql.connect(engine=f"grpc+tls://127.0.0.1:{server.port}", token=TOKEN, tls_root=old)
        other = tmp_path / "other.pem"
        subprocess.run([*command, "-keyout", str(other), "-out", str(tmp_path / "x")], check=True, capture_output=True)
        with pytest.raises(ModelError, match="certificate and key do not fit"):
            EngineServer(FakeModel(describe), name="x", **{**files, "certificate": (certificate, other)})
        with pytest.raises(SettingError, match="is not a PEM file"):
            llmsql.connect(engine="grpc+tls://x:1", tls_root=__file__)


def transfer(raw, descriptor, options, batches):
    writer, reader = raw.do_exchange(descriptor, options)
    try:
        if batches:
            writer.begin(batches[0].schema)
            for batch in batches:
                writer.write_batch(batch)
        writer.done_writing()
        reader.read_all()
    finally:
        with suppress(flight.FlightError, pa.ArrowException):
            writer.close()


def in_threads(work, count):
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
