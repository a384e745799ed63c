"""Triton kernels, each beside its torch reference.

Importing this package loads neither torch nor triton: `NodeTable`, `paged_attention` and `paged_attention_reference`
are resolved on first use, and triton only when a kernel is launched, so that the package imports where triton does not
exist (macOS, Windows).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import paged_attention
    from .attention_reference import paged_attention_reference
    from .node_table import NodeTable

__all__ = ["NodeTable", "paged_attention", "paged_attention_reference"]

_MODULE_OF = {
    "NodeTable": "node_table",
    "paged_attention": "attention",
    "paged_attention_reference": "attention_reference",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
