"""Every code block of the README and the docs runs, and every name that they mention in the project exists."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CARD = ROOT / "llmsql" / "demo" / "model" / "README.md"
DOCTESTS = ("llmsql.prompt", "llmsql.connection", "llmsql.testing", "llmsql.planner.calls", "llmsql.planner.parsing")
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
PLAIN = ("text", "json", "")  # output and data, not code


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def needs_spark(code: str) -> bool:
    return "pyspark" in code or "llmsql.spark" in code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "reviews.csv").write_text(
        "title,text,rating\n"
        'Garden hose,"Great hose, works perfectly and I love it.",5\n'
        'Garden hose,"Terrible. It broke after one day.",1\n'
        'Tea pot,"Lovely tea pot, excellent quality.",5\n'
    )
    (tmp_path / "movies.csv").write_text("title,info\nUp,A house flies.\nHeat,Police and thieves.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, folder):
    code = [text for language, text in blocks(page) if language == "python" and not needs_spark(text)]
    names: dict[str, object] = {"__name__": "docs"}
    for text in code:
        exec(compile(text, str(page), "exec"), names)


@pytest.mark.spark
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.spark_cluster] if page.name == "spark.md" else []) for page in PAGES],
    ids=lambda page: page.name,
)
def test_spark_blocks_run(page, folder):
    code = [text for language, text in blocks(page) if language == "python" and needs_spark(text)]
    if not code:
        pytest.skip("no Spark on this page")
    pytest.importorskip("pyspark")
    # A process of its own: the blocks make and stop their own Spark session.
    script = folder / "blocks.py"
    script.write_text("\n".join(code))
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_run(page, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks(page):
        if language != "bash":
            continue
        for line in text.replace("\\\n", " ").strip().splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] in ("git", "cd", "pip"):
                continue
            if words[0] == "make":
                assert words[1] in TARGETS, line
                continue
            if words[0] == "python" and words[1].startswith(("benchmarks/", "examples/")):
                assert (ROOT / words[1]).is_file(), line  # run by tests of their own, or by `make bench`
                continue
            assert words[0] in ("llmsql", "python"), f"{page.name}: no test knows how to run {line!r}"
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", [*PAGES, CARD], ids=lambda page: page.name)
def test_languages_and_links(page):
    for language, _ in blocks(page):
        assert language in ("python", "bash", "sql", *PLAIN)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"`?((?:llmsql|optimizer|gpu_backend|kernels|tests|benchmarks|examples)/[\w/]+\.py)\b", text
    ):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", DOCTESTS)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    assert results.attempted > 0
