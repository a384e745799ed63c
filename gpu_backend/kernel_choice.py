"""Whether the engine runs Triton's kernels or torch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from .errors import ModelError
from .kv_cache import LayerShape


def resolve_kernels(kernels: str, device: torch.device) -> bool:
    """`auto` runs Triton's kernels on CUDA where triton is installed, `torch` nowhere, `triton` also on the CPU.

    Raises ModelError for another word, and for "triton" on a CPU without TRITON_INTERPRET=1. Triton's interpreter is
    for tests: it is slower than torch by orders of magnitude.
    """
    if kernels not in ("auto", "triton", "torch"):
        raise ModelError(f"unknown kernels {kernels!r}: use 'auto', 'triton' or 'torch'")
    if kernels == "triton" and device.type != "cuda":
        from llmsql.kernels.language import is_interpreted  # loads triton

        if not is_interpreted():
            raise ModelError(
                f"kernels='triton' was asked for on {device}: Triton needs a CUDA device, or for tests its interpreter,"
                " with TRITON_INTERPRET=1 set before the program starts"
            )
    return kernels == "triton" or (kernels == "auto" and device.type == "cuda" and find_spec("triton") is not None)


def can_run(shapes: Sequence[LayerShape], dtype: torch.dtype) -> bool:
    """Whether the attention kernel takes heads of these shapes in this type."""
    from llmsql.kernels.attention import DTYPES, MAX_HEAD_DIM  # loads triton

    return dtype in DTYPES and all(max(shape.key_dim, shape.value_dim) <= MAX_HEAD_DIM for shape in shapes)
