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


@pytest.mark.parametrize("name", ["tree", "blocks", "scheduler"])
def test_tree_blocks_and_scheduler_import_no_torch(name):
    code = f"import sys, llmsql.gpu_backend.{name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light():
    code = (
        "import sys, llmsql\n"
        "heavy = {'torch', 'pyspark', 'transformers', 'duckdb', 'sqlglot', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "llmsql.connect\n"
        "heavy = {'torch', 'pyspark', 'transformers', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_query_with_a_fake_model_loads_no_torch():
    code = (
        "import sys, llmsql\n"
        "from llmsql.testing import FakeModel\n"
        "with llmsql.connect(model=FakeModel(lambda p, f, o: 'x')) as con:\n"
        "    assert con.sql(\"SELECT llm('p', 'a')\").fetchall() == [('x',)]\n"
        "assert 'torch' not in sys.modules and 'pyspark' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_public_names_stay_what_they_are():
    code = (
        "import llmsql, llmsql.spark, llmsql.optimizer\n"
        "llmsql.register, llmsql.Session\n"
        "assert callable(llmsql.connect) and callable(llmsql.register)\n"
        "assert all(hasattr(llmsql, name) for name in llmsql.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
