"""`llmsql serve`: started by hand, asked by several, ended by a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import llmsql
from llmsql import models
from llmsql.cli import main
from llmsql.demo.reviews import reviews_table
from llmsql.embedded import EmbeddedModel
from llmsql.serving.command import served_fingerprint
from llmsql.settings import Settings

SQL = """SELECT review_id, llm_filter('Is it positive?', review) AS positive, llm('Summarise', review, max_tokens := 5)
FROM reviews ORDER BY review_id"""
WAIT = 100


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The address of a server of the demo model, and its token."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("open sesame\n")
    command = [sys.executable, "-m", "llmsql", "serve", "demo", "--port", "0", "--token-file", str(token)]
    limits = ["--max-request-bytes", "8KiB", "--max-requests", "4", "--dtype", "float32"]
    with subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        found = re.fullmatch(r"llmsql: demo at (grpc://127\.0\.0\.1:\d+); Ctrl-C ends it\n", said)
        assert found, said + process.stderr.read()
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
        said = process.stderr.read().splitlines()
        assert all("a call without the right token was refused" in line for line in said), said


def test_several_clients_at_once_get_what_the_embedded_engine_says(engine):
    reviews = reviews_table(40, seed=5)
    with llmsql.connect(dtype="float32", cache=False) as con:
        con.register("reviews", reviews)
        expected = con.sql(SQL).fetchall()
        alone = con.last_query
        key = Settings(dtype="float32")
        kept = models.acquire("demo", key)
        assert isinstance(kept, EmbeddedModel)
        fingerprint = served_fingerprint(kept, key)
        assert fingerprint != models.files_fingerprint(kept), "clients do not know the number type otherwise"
        models.release(kept)
    found, problems = {}, []

    def work(number):
        try:
            with llmsql.connect(engine=engine, token="open sesame", cache=False) as con:
                con.register("reviews", reviews)
                found[number] = con.sql(SQL).fetchall(), con.last_query, con._models.own.fingerprint
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not problems
    for rows, query, other in found.values():
        assert rows == expected
        assert other == fingerprint
        for here, there in zip(alone.stages, query.stages, strict=True):
            assert (here.asked, here.prompt_tokens, here.output_tokens) == (
                there.asked,
                there.prompt_tokens,
                there.output_tokens,
            )
    computed = sum(query.computed_tokens for _, query, _ in found.values())
    assert computed < 2 * alone.computed_tokens, "what one client computed, the others share"


def test_command_line_client(engine, monkeypatch, capsys):
    arguments = ["SELECT llm_filter('Is it positive?', 'great') AS x", "--engine", engine, "--format", "csv"]
    assert main(arguments) == 1
    assert "refuses the token" in capsys.readouterr().err
    monkeypatch.setenv("LLMSQL_TOKEN", "open sesame")
    assert main([*arguments, "--no-progress"]) == 0
    assert capsys.readouterr().out in ("x\nTrue\n", "x\nFalse\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines: give a token (--token-file FILE"),
        (["demo", "--host", "::"], ":: can be reached from other machines"),
        (["demo", "--tls-cert", "x.pem"], "--tls-cert and --tls-key go together"),
        (["demo", "--token", "a", "--token-file", "b"], "give --token or --token-file, not both"),
        (["demo", "--token", "é"], "printable ASCII"),
        (["demo", "--token-file", "/no/such"], "No such file"),
        (["demo", "--max-request-bytes", "much"], "--max-request-bytes must be bytes"),
        (["/no/such/model"], "there is no such folder"),
    ],
)
def test_what_it_refuses(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("LLMSQL_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert "LLMSQL_TOKEN" not in os.environ
