"""Triton where it is installed; elsewhere stand-ins, so that launchers import and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

jit: Callable[..., Any]
"""`triton.jit`, or a decorator that does nothing where triton does not exist (macOS, Windows)."""
tl: Any
"""`triton.language`; a kernel finds it among its own file's globals, so files import it from here."""

try:
    import triton
    import triton.language as _language
except ModuleNotFoundError:
    triton = tl = None

    def jit(function: Any = None, **_: Any) -> Any:
        """Leave the function as it is: it is never run."""
        return jit if function is None else function
else:
    jit, tl = triton.jit, _language

FUSION = {"enable_fp_fusion": True}
"""Fusion is named because triton 3.9 warns where it is left to the default, which changes in 3.10."""


def is_interpreted() -> bool:
    """Whether kernels run on CPU tensors, in Triton's interpreter: TRITON_INTERPRET=1 when triton was imported."""
    return triton is not None and not isinstance(_probe, triton.JITFunction)


def check_device(name: str, tensor: torch.Tensor) -> None:
    """Raise ModuleNotFoundError without triton, and RuntimeError where the tensor is not on a CUDA device."""
    if triton is None:
        raise ModuleNotFoundError(
            f"{name} needs triton, which is not installed (it exists for Linux with an NVIDIA or AMD GPU): "
            "`pip install triton`, or run the engine with device='cpu', which needs no triton."
        )
    if not tensor.is_cuda and not is_interpreted():
        raise RuntimeError(
            f"{name} runs on CUDA tensors, these are on {tensor.device}. "
            "On other devices use the engine's torch operators, or the kernel's torch reference in tests."
        )


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device the current one: Triton launches there, not where its arguments are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def compute_type(dtype: torch.dtype) -> Any:
    """The Triton type of a kernel's arithmetic on operands of `dtype`.

    The interpreter computes wrong results in bf16 without saying so; there the operands are widened.
    """
    if dtype == torch.bfloat16 and is_interpreted():
        return tl.float32
    return getattr(tl, str(dtype).split(".")[1])


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


@jit
def _probe():  # type: ignore[no-untyped-def]
    pass
