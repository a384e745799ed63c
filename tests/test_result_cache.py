"""The result cache: what is paid for once stays paid, and nothing in it ever costs a query its answer."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

import llmsql
from llmsql.cache_keys import row_keys
from llmsql.errors import SettingError
from llmsql.fingerprint import folder_fingerprint, function_fingerprint
from llmsql.functions import make_call
from llmsql.result_cache import CachedAnswer, CacheWarning, ResultCache, default_path
from llmsql.settings import Settings
from llmsql.testing import FakeModel

SQL = "SELECT x, llm('Shout', x, y) AS shout FROM (VALUES ('a', 1), ('b', 2), ('a', 1), ('c', NULL)) t(x, y)"
SHOUTED = [("a", "A!"), ("b", "B!"), ("a", "A!"), ("c", "C!")]


def shout(prompt: str, fields: dict, options: dict) -> str:
    return fields["x"].upper() + "!"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "answers.sqlite"


def test_a_second_session_pays_for_nothing(file: Path) -> None:
    for calls, cached in ((3, 0), (0, 3)):
        model = FakeModel(shout)
        with llmsql.connect(model=model, cache=file) as con:
            assert con.sql(SQL).fetchall() == SHOUTED
            assert (con.last_query.model_calls, con.last_query.cached, model.calls) == (calls, cached, calls)
            assert con.cache.info().answers == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_memory_cache_ends_with_its_session() -> None:
    model = FakeModel(shout)
    for calls in (3, 6):
        with llmsql.connect(model=model, cache=":memory:") as con:
            for _ in range(2):
                assert con.sql(SQL).fetchall() == SHOUTED
            with con.cursor() as other:
                assert other.sql(SQL).fetchall() == SHOUTED
            assert model.calls == calls


def test_models_that_are_objects_are_not_cached_unless_asked_for(file: Path) -> None:
    model = FakeModel(shout)
    with llmsql.connect(model=model) as con:
        assert con.cache is None
        con.sql(SQL).fetchall()
        con.sql(SQL).fetchall()
    assert model.calls == 6

    class Nameless:
        def answer(self, call, fields, settings, statistics):
            return iter(())

        def close(self) -> None:
            pass

    with pytest.raises(SettingError, match="Nameless has no 'fingerprint'"):
        llmsql.connect(model=Nameless(), cache=file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cache": 3}, "'cache' must be"), ({"cache_size": "big"}, "'cache_size'"), ({"cache_size": 0}, "'cache_size'")],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        llmsql.connect(model=FakeModel(shout), **settings)


def test_a_key_holds_all_that_an_answer_depends_on_and_nothing_else() -> None:
    table = pa.table({"x": ["a", "b", None], "y": [1, None, 2]})
    settings = Settings()

    def keys(call=None, fields=table, settings=settings, model=b"m") -> list[bytes]:
        return row_keys(call or make_call("llm", "Shout"), fields, settings, model)

    base = keys()
    assert len(set(base)) == 3
    assert keys(fields=table.select(["y", "x"])) == base
    assert keys(make_call("llm", "Shout", options={"max_tokens": 64, "on_error": "fail"})) == base
    wider = table.append_column("z", pa.nulls(3))
    assert keys(fields=wider) == base
    others = [
        keys(make_call("llm", "Shout!")),
        keys(make_call("llm", "Shout", options={"max_tokens": 65})),
        keys(make_call("llm", "Shout", options={"temperature": 0.5, "seed": 1})),
        keys(make_call("llm", "Shout", options={"temperature": 0.5, "seed": 2})),
        keys(make_call("llm", "Shout", options={"system": "Be brief."})),
        keys(make_call("llm", "Shout", options={"reorder": False})),
        keys(make_call("llm_filter", "Shout")),
        keys(make_call("llm_classify", "Shout", ["a", "b"])),
        keys(make_call("llm_classify", "Shout", ["b", "a"])),
        keys(fields=table.rename_columns(["x", "z"])),
        keys(fields=pa.table({"x": ["a ", "b", None], "y": [1, None, 3]})),
        keys(settings=settings.changed(dtype="bfloat16")),
        keys(settings=settings.changed(cascade=False)),
        keys(model=b"n"),
    ]
    for other in others:
        different = [row for row in range(3) if other[row] != base[row]]
        assert different, "some row must have another key"
    all_keys = [key for other in [base, *others] for key in other]
    same_row = 1  # ("b", NULL) is the same under a renamed y and in the table with other values
    assert len(set(all_keys)) == len(all_keys) - 1 - 1, same_row


def test_pinned_fields_are_a_list() -> None:
    call = make_call("llm", "Shout", options={"reorder": False})
    table = pa.table({"x": ["a"], "y": [1]})
    assert row_keys(call, table, Settings(), b"m") != row_keys(call, table.select(["y", "x"]), Settings(), b"m")


def test_failures_are_asked_again(file: Path) -> None:
    broken = {"b"}

    def fails(prompt: str, fields: dict, options: dict) -> str:
        if fields["x"] in broken:
            raise ValueError("no idea")
        return "Yes" if fields["x"] == "a" else "perhaps"

    sql = "SELECT x, llm_filter('Good?', x) FROM (VALUES ('a'), ('b'), ('c')) t(x) ORDER BY x"
    model = FakeModel(fails)
    for calls in (3, 2):
        with llmsql.connect(model=model, cache=file) as con:
            with pytest.warns(llmsql.LlmsqlWarning, match="2 of"):
                relation = con.sql(sql)
            assert relation.fetchall() == [("a", True), ("b", None), ("c", None)]
            assert con.last_query.model_calls == calls
            assert con.cache.info().answers == 1


def test_answers_may_be_any_text(file: Path) -> None:
    texts = ["", "line\nline", "\ud800 alone", "naïve ☕", "\x00"]
    cache = ResultCache(file)
    cache.store(b"m", {bytes([n]): CachedAnswer(text, truncated=n == 1) for n, text in enumerate(texts)})
    again = ResultCache(file).find([bytes([n]) for n in range(9)])
    assert [again[bytes([n])] for n in range(5)] == [CachedAnswer(t, truncated=n == 1) for n, t in enumerate(texts)]
    assert len(again) == 5


def test_clearing_by_model(file: Path) -> None:
    cache = ResultCache(file)
    cache.store(b"one", {b"a": CachedAnswer("1"), b"b": CachedAnswer("2")})
    cache.store(b"two", {b"c": CachedAnswer("3")})
    assert cache.clear(b"one") == 2
    assert list(cache.find([b"a", b"b", b"c"])) == [b"c"]
    assert cache.clear() == 1
    assert cache.info().answers == 0


def test_size_is_bounded_and_the_unused_go_first(file: Path) -> None:
    cache = ResultCache(file, max_bytes=2**20)
    for batch in range(40):
        cache.store(b"m", {b"%d-%d" % (batch, n): CachedAnswer("x" * 1000) for n in range(100)})
        if batch == 0:
            with sqlite3.connect(file) as other:
                other.execute("UPDATE answers SET used = used - 100000")
    info = cache.info()
    assert info.bytes <= 1.2 * info.max_bytes
    assert info.answers > 300
    assert not cache.find([b"0-%d" % n for n in range(100)])
    assert cache.find([b"39-99"])
    assert file.stat().st_size <= 3 * info.max_bytes


def test_a_damaged_file_is_set_aside(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"this is no database " * 1000)
    model = FakeModel(shout)
    with llmsql.connect(model=model, cache=file) as con:
        with pytest.warns(CacheWarning, match="damaged"):
            assert con.sql(SQL).fetchall() == SHOUTED
        assert con.sql(SQL).fetchall() == SHOUTED
        con.sql(SQL).fetchall()
    assert model.calls <= 6
    assert len(list(file.parent.glob("*.damaged-*"))) == 1


def test_a_cache_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    model = FakeModel(shout)
    with llmsql.connect(model=model, cache=tmp_path / "file" / "answers.sqlite") as con:
        with pytest.warns(CacheWarning, match="cannot be used"):
            assert con.sql(SQL).fetchall() == SHOUTED
        assert con.sql(SQL).fetchall() == SHOUTED
    assert model.calls == 6


def test_a_full_disk_costs_no_answer(file: Path) -> None:
    with llmsql.connect(model=FakeModel(shout), cache=file) as con:
        con.sql(SQL).fetchall()
        connection = con.cache._open()
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        sql = "SELECT llm('Shout', x) FROM (SELECT repeat('long', 1000) || i AS x FROM range(50) r(i))"
        with pytest.warns(CacheWarning, match="full"):
            assert len(con.sql(sql).fetchall()) == 50


def test_threads_and_processes_share_a_file(file: Path) -> None:
    program = (
        "import sys\nfrom llmsql.result_cache import CachedAnswer, ResultCache\n"
        "cache = ResultCache(sys.argv[1])\nwho = sys.argv[2]\n"
        "for n in range(200):\n"
        "    cache.store(b'm', {f'{who}-{n}'.encode(): CachedAnswer(str(n))})\n"
        "    assert cache.find([f'{who}-{n}'.encode()])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(file), f"p{n}"]) for n in range(2)]
    cache = ResultCache(file)

    def write(who: int) -> None:
        for n in range(100):
            cache.store(b"m", {f"t{who}-{n}".encode(): CachedAnswer(str(n))})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert cache.info().answers == 2 * 200 + 4 * 100


KILLED = """
import sys, time
import llmsql
from llmsql.testing import FakeModel

def answer(prompt, fields, options):
    time.sleep(0.001)
    with open(sys.argv[2], "a") as log:
        log.write(f"{fields['i']}\\n")
    return str(fields["i"] * 2)

with llmsql.connect(model=FakeModel(answer), cache=sys.argv[1]) as con:
    rows = con.sql("SELECT i, llm('Twice', i) FROM range(1500) t(i) ORDER BY i").fetchall()
    assert rows == [(i, str(2 * i)) for i in range(1500)]
    print(con.last_query.model_calls, con.last_query.cached)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_killed_process_resumes(file: Path, tmp_path: Path) -> None:
    log, program = tmp_path / "log", tmp_path / "program.py"
    program.write_text(KILLED)
    command = [sys.executable, str(program), str(file), str(log)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while (not log.exists() or len(log.read_text().splitlines()) < 300) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text().splitlines()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked, cached = map(int, done.stdout.split())
    assert asked + cached == 1500
    after = log.read_text().splitlines()
    assert len(after) == len(before) + asked
    again = len(after) - len(set(after))
    assert again <= 1, "only the row that ran when the process was killed may run again"


def test_fingerprints_are_of_contents(tmp_path: Path) -> None:
    cache = ResultCache(None)

    def folder(name: str, weights: bytes, tokenizer: str = "{}") -> Path:
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "tokenizer.json").write_text(tokenizer)
        (made / "model.safetensors").write_bytes(weights)
        (made / "README.md").write_text(name)
        return made

    first = folder("first", b"123")
    same, heavier, other = folder("same", b"123"), folder("heavier", b"124"), folder("other", b"123", "[]")
    prints = [folder_fingerprint(path, cache) for path in (first, same, heavier, other)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    (first / "model.safetensors").write_bytes(b"125")
    os.utime(first / "model.safetensors", ns=(1, 1))
    assert folder_fingerprint(first, cache) not in prints


def test_a_function_is_known_by_its_code() -> None:
    same = [function_fingerprint(lambda p, f, o: f["x"].upper()) for _ in range(2)]
    assert same[0] == same[1]
    assert function_fingerprint(lambda p, f, o: f["x"].lower()) != same[0]
    assert function_fingerprint(lambda p, f, o: "Yes") != function_fingerprint(lambda p, f, o: "No")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMSQL_CACHE", str(tmp_path / "here.sqlite"))
    assert default_path() == tmp_path / "here.sqlite"
    monkeypatch.delenv("LLMSQL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "llmsql" / "answers.sqlite"


def test_interrupted_rows_are_kept(file: Path) -> None:
    def stops(prompt: str, fields: dict, options: dict) -> str:
        if fields["i"] == 50:
            raise KeyboardInterrupt
        return "fine"

    model = FakeModel(stops)
    with llmsql.connect(model=model, cache=file, reorder=False) as con:
        with pytest.raises(KeyboardInterrupt):
            con.sql("SELECT llm('Fine?', i) FROM range(100) t(i)")
        assert con.cache.info().answers == model.calls - 1
