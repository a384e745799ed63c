"""Triton kernels, each beside its torch reference.

Importing this package loads neither torch nor triton: its names are resolved on first use, so that the package imports
where triton does not exist (macOS, Windows). There the references still work, and the kernels say what is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .activation import gelu_and_mul, silu_and_mul
    from .attention import paged_attention
    from .attention_reference import paged_attention_reference
    from .kv_write import write_kv
    from .log_probs import gathered_log_softmax
    from .merge import merge_parts
    from .node_table import NodeTable
    from .norm import rms_norm
    from .rotary import rotary_and_write
    from .work_list import WorkList

_MODULE_OF = {
    "NodeTable": "node_table",
    "WorkList": "work_list",
    "gathered_log_softmax": "log_probs",
    "gelu_and_mul": "activation",
    "merge_parts": "merge",
    "paged_attention": "attention",
    "paged_attention_reference": "attention_reference",
    "rms_norm": "norm",
    "rotary_and_write": "rotary",
    "silu_and_mul": "activation",
    "write_kv": "kv_write",
}

__all__ = [
    "NodeTable",
    "WorkList",
    "gathered_log_softmax",
    "gelu_and_mul",
    "merge_parts",
    "paged_attention",
    "paged_attention_reference",
    "rms_norm",
    "rotary_and_write",
    "silu_and_mul",
    "write_kv",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
