"""Gated activations of a merged projection: SiLU(gate) * up (SwiGLU, Shazeer 2020) and tanh-GELU(gate) * up.

Limits: float16, bfloat16 or float32, contiguous, any size.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .language import FUSION, check_device, jit, on_device, tl

BLOCK = 1024  # numbers per program


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` [tokens, size] of [tokens, 2 * size]; computed in fp32, rounded once.

    Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError without triton.
    """
    return _gated("silu_and_mul", gate_up, tanh_gelu=False)


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`gelu(gate) * up` as `silu_and_mul`, with the tanh approximation of GELU."""
    return _gated("gelu_and_mul", gate_up, tanh_gelu=True)


def _gated(name: str, gate_up: torch.Tensor, *, tanh_gelu: bool) -> torch.Tensor:
    check_device(name, gate_up)
    assert gate_up.is_contiguous(), f"{name} takes a contiguous projection"
    assert gate_up.shape[-1] % 2 == 0, f"{name} takes gate and up of one size, not {gate_up.shape[-1]} numbers in all"
    size = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], size))
    if out.numel():
        with on_device(gate_up):
            grid = (out.numel() // size, -(-size // BLOCK))
            gated_kernel[grid](out, gate_up, size, **launch_configuration(tanh_gelu=tanh_gelu))
    return out


def launch_configuration(*, tanh_gelu: bool) -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    return {"TANH_GELU": tanh_gelu, "BLOCK": BLOCK, "num_warps": 4, "num_stages": 1, **FUSION}


@jit
def gated_kernel(
    out_pointer,  # [rows, size]
    gate_up_pointer,  # [rows, 2 * size]
    size,
    TANH_GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program: BLOCK numbers of one row; grid (rows, column blocks)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    source = gate_up_pointer + row * (2 * size) + column
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=mask, other=0.0).to(tl.float32)
    # Both are gate * sigmoid(z): gelu's 0.5 (1 + tanh(z / 2)) is sigmoid(z). One exponential; inf gives 0.
    z = gate
    if TANH_GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    result = gate / (1.0 + tl.exp2(-z * LOG2E)) * up
    tl.store(out_pointer + row * size + column, result.to(out_pointer.dtype.element_ty), mask=mask)


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The same in torch, in fp32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The same in torch, in fp32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)
