"""The command line: formats, errors, plan, progress."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pyarrow.parquet as pq
import pytest

from llmsql.cli import main

SQL = "SELECT title, llm_filter('Is the review positive?', text) AS positive FROM '{}' ORDER BY title, text"


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('title,text\nHose,"Great, I love it."\nHose,"Terrible, it broke."\nPot,\n')
    return path


def test_csv(reviews, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # the bar is squeezed into narrow terminals
    assert main([SQL.format(reviews), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "title,positive"
    assert sorted(lines[1:]) == ["Hose,False", "Hose,True", "Pot,"]
    assert "hit rate" in err, "the summary goes to standard error"
    assert "3/3 rows" in err, "and so does the progress bar"


def test_json_and_no_progress(reviews, capsys):
    assert main([SQL.format(reviews), "--format", "json", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["title"] for row in rows] == ["Hose", "Hose", "Pot"]
    assert rows[2]["positive"] is None
    assert err == ""


def test_json_of_no_rows(reviews, capsys):
    assert main([f"SELECT llm('Say', text) AS s FROM '{reviews}' WHERE title = 'x'", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_table_and_parquet(reviews, tmp_path, capsys):
    assert main([SQL.format(reviews), "--no-progress"]) == 0
    assert "positive" in capsys.readouterr().out
    target = tmp_path / "out.parquet"
    assert main([SQL.format(reviews), "--format", "parquet", "--output", str(target)]) == 0
    assert pq.read_table(target).column_names == ["title", "positive"]
    assert main([SQL.format(reviews), "--format", "parquet"]) == 2


def test_explain_loads_no_model(reviews):
    code = (
        "import sys; from llmsql.cli import main\n"
        f"status = main([{SQL.format(reviews)!r}, '--explain'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "ask llm_filter" in done.stdout
    assert done.stderr == ""


def test_dry_run(reviews, capsys):
    assert main([SQL.format(reviews), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("call ")
    assert lines[1].split()[-8:-4] == ["3", "3", "0", "2"], "a row without a text is not asked"
    assert err == ""
    shows = warnings.showwarning
    assert main([SQL.format(reviews), "--dry-run", "--cache", str(reviews / "in a file")]) == 0
    assert "the result cache" in capsys.readouterr().err
    assert warnings.showwarning is shows


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["SELECT llm_filter('a?', nope) FROM 'REVIEWS'"], '"nope" not found'),
        (["SELECT llm('a?', text, colour := 1) FROM 'REVIEWS'"], "no option 'colour'"),
        (["SELECT llm('a?', text) FROM 'REVIEWS'", "--model", "/no/such/folder"], "no such folder"),
        (["SELECT llm('a?', text FROM 'REVIEWS'"], "does not parse"),
        (["SELECT * FROM nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_message_and_a_status(arguments, text, reviews, capsys):
    assert main([argument.replace("REVIEWS", str(reviews)) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.startswith("llmsql: ")
    assert "Traceback" not in err


def test_the_command_is_installed_and_ends_quietly(reviews):
    done = subprocess.run(
        [sys.executable, "-m", "llmsql", f"SELECT count(*) AS n FROM '{reviews}'", "--format", "csv"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "n\n3\n", "")
