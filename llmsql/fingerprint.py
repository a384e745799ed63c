"""What makes a model the same model: the contents of its files, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import CodeType

from llmsql.result_cache import ResultCache

PATTERNS = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt", "*.py", "*.safetensors")
_READ_AT_A_TIME = 2**22


def folder_fingerprint(folder: Path, cache: ResultCache) -> bytes:
    """A digest of the weights, the tokenizer and the configuration in a model folder.

    Large files are read once: `cache` notes their digest with size and time of change.
    Raises OSError when a file cannot be read.
    """
    files = sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        total.update(path.name.encode() + b"\\0" + _file_digest(path, cache))
    return total.digest()


def noted_fingerprint(name: str, cache: ResultCache) -> bytes | None:
    """The fingerprint of a model folder or hub id whose weights were read before; None where they would have to be."""
    folder = model_folder(name)
    if folder is None:
        return None
    try:
        weights = [path for path in folder.glob("*.safetensors") if cache.digest_of(*_file_state(path)) is None]
        return None if weights else folder_fingerprint(folder, cache)
    except OSError:
        return None


def model_folder(name: str) -> Path | None:
    """The folder that a model's name is; of a model of the hub the one on this machine, None before it is fetched."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def function_fingerprint(function: Callable[..., object]) -> bytes:
    """A digest of a Python function's code and defaults; what it reads from elsewhere does not count."""
    digest = hashlib.blake2b(digest_size=16)
    code = getattr(function, "__code__", None)
    digest.update(f"{getattr(function, '__qualname__', type(function).__qualname__)}".encode())
    if isinstance(code, CodeType):
        _add_code(digest, code)
    digest.update(repr(getattr(function, "__defaults__", None)).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _file_digest(path: Path, cache: ResultCache) -> bytes:
    state = _file_state(path)
    known = cache.digest_of(*state)
    if known is not None:
        return known
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as opened:
        while part := opened.read(_READ_AT_A_TIME):
            digest.update(part)
    cache.note_digest(*state, digest.digest())
    return digest.digest()


def _file_state(path: Path) -> tuple[str, str]:
    facts = path.stat()
    return str(path.resolve()), f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ino}"


def _add_code(digest: hashlib.blake2b, code: CodeType) -> None:
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        else:
            digest.update(repr(constant).encode("utf-8", "surrogatepass"))
