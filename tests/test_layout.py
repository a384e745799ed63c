"""The house: one-way imports, light import, one package behind the links."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("optimizer", "gpu_backend", "kernels")
MAY_IMPORT = {"optimizer": (), "gpu_backend": ("kernels",), "kernels": ()}


def imported_modules(path: Path, package: str) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_links_into_the_package(room):
    assert (ROOT / "llmsql" / room).resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    allowed = tuple(f"llmsql.{name}" for name in (room, *MAY_IMPORT[room]))
    for path in sorted((ROOT / room).rglob("*.py")):
        package = ".".join(["llmsql", *path.relative_to(ROOT).with_suffix("").parts[:-1]])
        for module in imported_modules(path, package):
            if module == "llmsql" or module.startswith("llmsql."):
                inside = any(module == name or module.startswith(name + ".") for name in allowed)
                assert inside, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ["optimizer"])
def test_the_optimizer_needs_only_numpy_and_pyarrow(room):
    for path in sorted((ROOT / room).rglob("*.py")):
        for module in imported_modules(path, f"llmsql.{room}"):
            top = module.split(".")[0]
            assert top in (*sys.stdlib_module_names, "numpy", "pyarrow", "llmsql"), f"{path.name} imports {module}"


# What is done in a fresh interpreter, one after the other, and what is not loaded by it.
LIGHT = (
    ("import llmsql", "torch pyspark transformers triton duckdb sqlglot numpy"),
    ("import llmsql.gpu_backend", "torch transformers numpy"),
    ("import llmsql.gpu_backend.tree, llmsql.gpu_backend.blocks, llmsql.gpu_backend.scheduler", "torch"),
    ("import llmsql.kernels; llmsql.kernels.NodeTable", "torch triton"),
    ("llmsql.connect; llmsql.llm_filter", "torch pyspark transformers triton pandas polars pyarrow._flight"),
    (
        "from llmsql.testing import FakeModel\n"
        "with llmsql.connect(model=FakeModel(lambda p, f, o: 'x')) as con:\n"
        "    assert con.sql(\"SELECT llm('p', 'a')\").fetchall() == [('x',)]",
        "torch pyspark",
    ),
)


def test_what_needs_no_model_is_light():
    code = (
        "import sys\n"
        f"for work, heavy in {LIGHT!r}:\n"
        "    exec(work)\n"
        "    loaded = sorted(set(heavy.split()) & set(sys.modules))\n"
        "    assert not loaded, f'{work} loads {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_stay_what_they_are():
    code = (
        "import llmsql, llmsql.spark, llmsql.optimizer\n"
        "llmsql.register, llmsql.Session\n"
        "assert callable(llmsql.connect) and callable(llmsql.register)\n"
        "assert all(hasattr(llmsql, name) for name in llmsql.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
