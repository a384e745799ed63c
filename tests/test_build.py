"""The wheel and the sdist hold real files where the tree has links, and the demo model with them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llmsql.demo import MODEL_FOLDER
from llmsql.gpu_backend.kernel_choice import why_not_native

ROOT = Path(__file__).parent.parent
WANTED = (
    "llmsql/py.typed",
    "llmsql/optimizer/reorder.py",
    "llmsql/gpu_backend/engine.py",
    "llmsql/kernels/node_table.py",
    "llmsql/kernels/native/attention.cpp",
    "llmsql/kernels/native/vectors.h",
    "llmsql/demo/model/model.safetensors",
    "llmsql/demo/model/tokenizer.json",
    "llmsql/demo/model/README.md",
    "llmsql/spark/__init__.py",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "llmsql"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to((ROOT / name).readlink())
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_wheel(built):
    (path,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    assert set(WANTED) <= names
    assert not [name for name in names if name.startswith(("tests/", "optimizer/", "gpu_backend/", "kernels/"))]


def test_sdist(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive.getmembers() if "/" in member.name}
    assert set(WANTED) <= set(members)
    assert all(members[name].isfile() for name in WANTED)


def test_imported_from_the_wheel_as_it_is(built, tmp_path):
    """As Spark's `--py-files` does it, with the wheel renamed; weights cannot be read in it."""
    pytest.importorskip("pyspark")
    (path,) = built.glob("*.whl")
    archive = tmp_path / "llmsql.zip"
    archive.write_bytes(path.read_bytes())
    code = f"""
import sys
sys.path.insert(0, {str(archive)!r})
import llmsql, llmsql.serving.engine_process, llmsql.spark.stage_function, llmsql.spark.partition
assert llmsql.optimizer.__file__.startswith({str(archive)!r})
try:
    llmsql.connect()
except llmsql.ModelError as problem:
    print(problem)
with llmsql.connect(model={str(MODEL_FOLDER)!r}, cache=False) as con:
    print(con.sql("SELECT llm('Say', 1, max_tokens := 3)").fetchall())
from llmsql.gpu_backend.kernel_choice import why_not_native
print("native kernels:", why_not_native())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "model 'demo': it is inside the archive that llmsql was imported from" in done.stdout
    assert f"native kernels: {why_not_native()}\n" in done.stdout
