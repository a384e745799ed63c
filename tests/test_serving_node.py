"""One engine process per machine: found by all, held by leases, gone afterwards, started again when it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from serving_engine import __file__ as SCRIPT
from serving_engine import node_engine

import llmsql
from llmsql import ModelError
from llmsql.demo import MODEL_FOLDER
from llmsql.demo.reviews import reviews_table
from llmsql.functions import make_call
from llmsql.serving.node_engine import NodeEngine
from llmsql.serving.private_files import FileLock, runtime_folder, write_private
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

WAIT = 60  # seconds until a test says that something hangs
CALL, HALTING, DIE = (make_call("llm", prompt) for prompt in ("Say", "wait", "die"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets and locks")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path_factory):
    """The private folder; no test leaves a process."""
    path = tmp_path_factory.mktemp("run", numbered=True) / "d"
    monkeypatch.setenv("LLMSQL_RUNTIME_DIR", str(path))
    yield path
    eventually(lambda: all(is_free(lock) for lock in path.glob("*.lock")))


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes"
    path.touch()
    return path


def eventually(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def is_free(path):
    lock = FileLock(path)
    taken = lock.acquire()
    lock.release()
    return taken


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ask(model, rows, call=CALL):
    return model.answer(call, pa.table({"x": range(rows)}), Settings(), StageStatistics())


def asked(notes):
    return [int(line.split()[1]) for line in notes.read_text().splitlines()]


def start_client(notes):
    command = [sys.executable, SCRIPT, "client", str(notes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


class TestProcesses:
    def test_four_at_once_share_one_which_is_gone_afterwards(self, notes, folder):
        clients = [start_client(notes) for _ in range(4)]
        said = [json.loads(client.stdout.readline()) for client in clients]
        (pid,) = {one["pid"] for one in said}
        assert [one["texts"] for one in said] == [[f"{pid} {x}" for x in range(5)]] * 4
        assert len(asked(notes)) == 20
        (lock,) = folder.glob("*.lock")
        assert not is_free(lock)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        clients[0].kill()  # -9: its lease ends with its connection
        for client in clients[1:3]:
            client.stdin.close()
        for client in clients[:3]:
            client.wait(WAIT)
        time.sleep(1.5)  # longer than the process lingers
        assert runs(pid), "one client still holds it"
        clients[3].kill()
        clients[3].wait(WAIT)
        eventually(lambda: not runs(pid))
        assert list(folder.iterdir()) == [lock]
        for client in clients:
            client.stdout.close()
            client.stdin.close()

    def test_who_comes_again_in_time_finds_it(self, notes):
        pids = set()
        for _ in range(3):
            with closing(node_engine(notes, linger=600).model()) as model:
                pids.add(model.about["pid"])
        (pid,) = pids
        os.kill(pid, signal.SIGTERM)  # ends it at once, as it should be
        eventually(lambda: not runs(pid))

    def test_killed_in_the_middle_of_a_call(self, notes):
        with closing(node_engine(notes).model()) as model:
            answers = ask(model, 30, HALTING)
            found = [next(answers) for _ in range(8)]
            first = model.about["pid"]
            os.kill(first, signal.SIGKILL)
            notes.with_suffix(".go").touch()
            found += list(answers)
            second = model.about["pid"]
            assert second != first
            assert sorted(answer.row for answer in found) == list(range(30))
            assert {answer.text.split()[0] for answer in found} == {str(first), str(second)}
            assert all(answer.text.split()[1] == str(answer.row) for answer in found)
            assert len(asked(notes)) <= 30 + 10, "only what was on its way is asked again"

    def test_killed_between_two_calls(self, notes):
        with closing(node_engine(notes).model()) as model:
            assert len(list(ask(model, 3))) == 3
            pid = model.about["pid"]
            os.kill(pid, signal.SIGKILL)
            assert len(list(ask(model, 3))) == 3
            assert model.about["pid"] != pid
            assert model.fingerprint == b"noting"

    def test_a_row_that_kills_it_every_time(self, notes):
        with closing(node_engine(notes).model()) as model:
            answers = ask(model, 6, DIE)
            assert [next(answers).row for _ in range(3)] == [0, 1, 2]
            notes.with_suffix(".go").touch()
            with pytest.raises(ModelError) as caught:
                list(answers)
        text = str(caught.value)
        assert "4 times in one call; 3 of 6 rows were answered before" in text, text
        assert text.endswith("it said last:\nit was too much for me")

    def test_two_models_and_two_states_of_one_are_two_processes(self, notes, tmp_path):
        (tmp_path / "weights").write_text("1")
        before = NodeEngine(str(tmp_path), {"dtype": "auto"}, linger=1)
        digests = [before._digest(), NodeEngine(str(tmp_path), {"dtype": "float32"}, linger=1)._digest()]
        (tmp_path / "weights").write_text("22")
        digests.append(before._digest())
        assert len(set(digests)) == 3
        assert digests[2] == NodeEngine(str(tmp_path), {"dtype": "auto"}, linger=5)._digest()


class TestStart:
    def test_what_dead_processes_left_is_in_nobodys_way(self, notes, folder):
        engine = node_engine(notes)
        stale = runtime_folder() / f"{engine._digest()}.json"
        for left in ('{"location": "grpc+unix:///nowhere", "token": "x", "pid": 1}', "garbage", '["x"]'):
            stale.write_text(left)
            stale.with_suffix(".lock").touch()
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(stale.with_suffix(".sock")))
            with closing(engine.model()) as model:
                assert len(list(ask(model, 2))) == 2
                pid = model.about["pid"]
            os.kill(pid, signal.SIGTERM)
            eventually(lambda pid=pid: not runs(pid))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("broken", r"(?s)ended at its start \(status 1\); it said last:\n.*/x: there is no config.json in it"),
            ("crashing", r"(?s)ended at its start \(status 1\); it said last:\nout of luck"),
        ],
    )
    def test_a_process_that_ends_at_its_start(self, notes, name, message):
        with closing(node_engine(notes, model=name).model()) as model:
            with pytest.raises(ModelError, match=message):
                list(ask(model, 1))

    def test_a_command_that_is_not_there(self):
        engine = NodeEngine("x", {}, linger=1, command=["/no/such/python"])
        with pytest.raises(ModelError, match=r"engine process of x cannot be started: .*No such file"):
            engine.client()

    def test_one_that_hangs(self, notes, monkeypatch):
        monkeypatch.setattr("llmsql.serving.node_engine.START_TIMEOUT", 1.0)
        monkeypatch.setattr("llmsql.serving.engine_client.TIMEOUT", 0.5)
        engine = node_engine(notes)
        lock = FileLock(runtime_folder() / f"{engine._digest()}.lock")
        assert lock.acquire()
        write_private(lock.path.with_suffix(".json"), {"location": "grpc+unix:///nowhere", "token": "x", "pid": 77})
        with pytest.raises(ModelError, match=r"\(pid 77\) does not answer for 1 seconds"):
            engine.client()
        lock.release()


class TestPrivateFiles:
    def test_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LLMSQL_RUNTIME_DIR", str(tmp_path / "open"))
        (tmp_path / "open").mkdir(mode=0o755)
        (tmp_path / "open").chmod(0o755)
        with pytest.raises(ModelError, match=r"open to other users \(mode 755, not 700\): remove it, or name another"):
            runtime_folder()
        (tmp_path / "link").symlink_to(tmp_path)
        monkeypatch.setenv("LLMSQL_RUNTIME_DIR", str(tmp_path / "link"))
        with pytest.raises(ModelError, match="link is no folder"):
            runtime_folder()
        monkeypatch.setenv("LLMSQL_RUNTIME_DIR", str(tmp_path / "no" / "such"))
        with pytest.raises(ModelError, match="cannot be made"):
            runtime_folder()
        monkeypatch.setenv("LLMSQL_RUNTIME_DIR", "/tmp/" + "x" * 90)
        with pytest.raises(ModelError, match="too long for a socket"):
            runtime_folder()
        Path("/tmp/" + "x" * 90).rmdir()
        monkeypatch.delenv("LLMSQL_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert runtime_folder() == tmp_path / "llmsql"
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert runtime_folder() == tmp_path / f"llmsql-{os.getuid()}"
        monkeypatch.setattr("os.getuid", lambda: 12345)
        (tmp_path / "llmsql-12345").mkdir(mode=0o700)
        if (tmp_path / "llmsql-12345").stat().st_uid != 12345:
            with pytest.raises(ModelError, match="belongs to another user"):
                runtime_folder()


class TestWholeEngine:
    SQL = """SELECT review_id, llm_filter('Is it positive?', review) AS positive,
    llm('Summarise', review, max_tokens := 5) FROM reviews ORDER BY review_id"""

    def test_from_sql_as_in_this_process(self, tmp_path, folder):
        reviews = reviews_table(12, seed=3)
        options = {"dtype": "float32", "cache": str(tmp_path / "cache"), "engine_linger": 0}
        broken = tmp_path / "broken"
        shutil.copytree(MODEL_FOLDER, broken)
        weights = next(broken.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:1000])
        with llmsql.connect(engine="node", **options) as con:
            con.register("reviews", reviews)
            assert con.explain(self.SQL)
            assert not folder.exists(), "a plan needs no engine"
            found = con.sql(self.SQL).fetchall()
            counted = con.last_query
            with pytest.raises(ModelError, match=r"(?s)broken.*(safetensors|header|weights)"):
                con.sql(f"SELECT llm('Say', review, model := '{broken}') FROM reviews LIMIT 1")
        with llmsql.connect(**{**options, "cache": False}) as con:
            con.register("reviews", reviews)
            assert con.sql(self.SQL).fetchall() == found
            for here, there in zip(con.last_query.stages, counted.stages, strict=True):
                assert here.prompt_tokens == there.prompt_tokens > 0
                assert (here.computed_tokens, here.output_tokens) == (there.computed_tokens, there.output_tokens)
                assert here.predicted_hit_rate == there.predicted_hit_rate
        with llmsql.connect(**options) as con:
            con.register("reviews", reviews)
            assert con.sql(self.SQL).fetchall() == found
            assert con.last_query.model_calls == 0, "answers of either place are kept under one fingerprint"
