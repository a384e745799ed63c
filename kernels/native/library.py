"""The C++ kernels as a shared library: compiled once for this machine, kept in the user's cache, loaded by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

SOURCES = ("attention.cpp", "layers.cpp", "linear.cpp", "operators.cpp")
HEADERS = ("calls.h", "packed.h", "pool.h", "vectors.h")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
SECONDS_TO_COMPILE = 120
"""After so long a compiler is given up."""
KEPT = 8
"""How many libraries stay in the cache, the latest ones."""
OPENMP = ("libgomp", "libiomp5", "libomp")
"""Libraries that run what the compiler makes of OpenMP's pragmas; torch brings one of them."""

logger = logging.getLogger(__name__)


class UnavailableError(RuntimeError):
    """There are no C++ kernels on this machine; the text says why."""


@cache
def load() -> ctypes.CDLL:
    """The library; it is compiled on first use, which takes some seconds, and found in the cache later.

    The cache is `$LLMSQL_KERNEL_CACHE`, or `llmsql/kernels` below `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        UnavailableError: this is not Linux, there is no compiler (`$CXX`, g++ or c++), or it fails: it must be GCC.
            Or the sources are missing.
    """
    if sys.platform != "linux":
        raise UnavailableError(f"the C++ kernels run on Linux, not on {sys.platform}")
    threads = _openmp()
    compiler = _compiler()
    sources = _sources()
    name = f"kernels-{_fingerprint(compiler, sources)}.so"
    folder = _cache_folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="llmsql-kernels-") as temporary:
            return _open(_compiled(compiler, sources, Path(temporary) / name), threads)
    path = folder / name
    if path.exists():
        try:
            return _open(path, threads)
        except UnavailableError as reason:
            logger.warning("%s; it is compiled anew", reason)
    _compiled(compiler, sources, path)
    for old in sorted(folder.glob("kernels-*.so"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)  # of other versions; a process that has one open keeps it
    return _open(path, threads)


def _open(path: Path, threads: str) -> ctypes.CDLL:
    try:
        ctypes.CDLL(threads, mode=ctypes.RTLD_GLOBAL)  # one pool of threads for torch and for us
        return ctypes.CDLL(str(path))
    except OSError as problem:
        raise UnavailableError(f"{path} cannot be loaded: {problem}") from problem


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise UnavailableError("there is no C++ compiler ($CXX, g++ or c++)")


def _sources() -> dict[str, bytes]:
    """The files that are compiled, which may be in an archive."""
    try:
        return {name: files(__package__).joinpath(name).read_bytes() for name in (*SOURCES, *HEADERS)}
    except (OSError, KeyError) as problem:
        logger.warning("the engine runs slower: the sources of its CPU kernels are not beside %s", __file__)
        raise UnavailableError(f"llmsql was packed without the sources of its CPU kernels ({problem})") from problem


def _compiled(compiler: str, sources: dict[str, bytes], path: Path) -> Path:
    """The library at `path`, put there all at once."""
    logger.info("compiling the CPU kernels with %s into %s", compiler, path)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".kernels-", suffix=".so")  # has mode 0600
    os.close(descriptor)
    try:
        with tempfile.TemporaryDirectory(prefix="llmsql-kernels-") as folder:
            for name, source in sources.items():
                (Path(folder) / name).write_bytes(source)
            command = [compiler, *OPTIONS, *(f"{folder}/{name}" for name in SOURCES), "-o", unfinished]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE, check=False)
        if done.returncode:
            raise UnavailableError(f"{compiler} failed: {done.stderr.strip()[:500]}")
        os.replace(unfinished, path)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise UnavailableError(f"{compiler} failed: {problem}") from problem
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return path


def _fingerprint(compiler: str, sources: dict[str, bytes]) -> str:
    """Of all that the library depends on: another processor or compiler must not find it."""
    digest = hashlib.sha256()
    for source in sources.values():
        digest.update(source)
    for part in (*OPTIONS, compiler, str(os.stat(compiler).st_mtime_ns), platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What the processor can do, as Linux lists it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.lower().startswith(("model name", "flags", "features"))}))


def _openmp() -> str:
    """The path of the OpenMP library that torch has loaded."""
    import torch  # noqa: F401  it loads the library

    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    for library in OPENMP:
        for path in sorted(mapped):
            if Path(path).name.startswith(library):
                return path
    raise UnavailableError("this torch runs without OpenMP")


def _cache_folder() -> Path | None:
    """A folder that only this user can write to; None where there is none."""
    named = os.environ.get("LLMSQL_KERNEL_CACHE")
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(named) if named else home / "llmsql" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except (OSError, RuntimeError):
        return None
    if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o022 or not os.access(folder, os.W_OK):
        logger.warning("%s is not kept to this user: the CPU kernels are compiled anew for each process", folder)
        return None
    return folder
