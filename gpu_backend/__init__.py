"""The embedded inference engine: a prefix tree over the batch, paged KV, continuous batching.

Importing this package loads neither torch nor transformers: its names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .cpu_threads import let_idle_threads_sleep

if TYPE_CHECKING:
    from .engine import Engine
    from .errors import EngineError, MemoryBudgetError, ModelError, RequestError
    from .grammar import Grammar
    from .request import Completion, Request
    from .stats import EngineStats
    from .tokenizer import PromptTokenizer

__all__ = [
    "Completion",
    "Engine",
    "EngineError",
    "EngineStats",
    "Grammar",
    "MemoryBudgetError",
    "ModelError",
    "PromptTokenizer",
    "Request",
    "RequestError",
]

_MODULE_OF = {
    "Completion": "request",
    "Engine": "engine",
    "EngineError": "errors",
    "EngineStats": "stats",
    "Grammar": "grammar",
    "MemoryBudgetError": "errors",
    "ModelError": "errors",
    "PromptTokenizer": "tokenizer",
    "Request": "request",
    "RequestError": "errors",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    let_idle_threads_sleep()
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
