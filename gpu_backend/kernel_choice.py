"""Which kernels the engine runs: Triton's, those in C++, or torch's operators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch

from .errors import ModelError
from .kv_cache import LayerShape

CHOICES = ("auto", "triton", "native", "torch")

logger = logging.getLogger(__name__)


def resolve_kernels(kernels: str, device: torch.device) -> str:
    """ "triton", "native" or "torch".

    `auto` is Triton's kernels on CUDA where triton is installed, the C++ kernels on a CPU where they can be compiled,
    and torch's operators elsewhere.

    Raises ModelError for another word, for "triton" on a CPU without TRITON_INTERPRET=1, and for "native" where there
    are no C++ kernels. Triton's interpreter is for tests: it is slower than torch by orders of magnitude.
    """
    if kernels not in CHOICES:
        raise ModelError(f"unknown kernels {kernels!r}: use 'auto', 'triton', 'native' or 'torch'")
    if kernels == "auto":
        if device.type == "cuda":
            return "triton" if find_spec("triton") is not None else "torch"
        return "native" if device.type == "cpu" and why_not_native() is None else "torch"
    if kernels == "triton" and device.type != "cuda":
        from llmsql.kernels.language import is_interpreted  # loads triton

        if not is_interpreted():
            raise ModelError(
                f"kernels='triton' was asked for on {device}: Triton needs a CUDA device, or for tests its interpreter,"
                " with TRITON_INTERPRET=1 set before the program starts"
            )
    if kernels == "native":
        if device.type != "cpu":
            raise ModelError(f"kernels='native' was asked for on {device}: the C++ kernels run on the CPU")
        if why := why_not_native():
            raise ModelError(f"kernels='native' was asked for: {why}")
    return kernels


@cache
def why_not_native() -> str | None:
    """What keeps the C++ kernels from running here; None where they do, and agree with torch."""
    from llmsql.kernels.native.attention import agrees_with_torch
    from llmsql.kernels.native.library import UnavailableError

    try:
        if agrees_with_torch():
            return None
        why = "as compiled here they give other results than torch; please report this"
        logger.warning("the CPU kernels are not used: %s", why)
    except UnavailableError as reason:
        why = str(reason)
        logger.info("the CPU kernels are not used: %s", why)
    return why


def can_run(kernels: str, shapes: Sequence[LayerShape], dtype: torch.dtype) -> bool:
    """Whether the attention kernel of this kind takes heads of these shapes in this type."""
    if kernels == "native":
        from llmsql.kernels.native import pool

        return dtype in pool.DTYPES
    if kernels == "triton":
        from llmsql.kernels.attention import DTYPES, MAX_HEAD_DIM  # loads triton

        return dtype in DTYPES and all(max(shape.key_dim, shape.value_dim) <= MAX_HEAD_DIM for shape in shapes)
    return True
