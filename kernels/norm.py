"""Root mean square norm of each row, with the residual sum before it (Zhang and Sennrich 2019).

Limits: float16, bfloat16 or float32, rows of up to 65,536 numbers, the last dimension contiguous. Rows may be a strided
view of two or three dimensions, such as the heads of the queries within a merged projection.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch

from .language import FUSION, check_device, jit, next_power_of_two, on_device, tl

BLOCK = 1024  # numbers of a program at least, where rows are short


def rms_norm(
    x: torch.Tensor,  # [tokens, size] or [tokens, heads, size]
    weight: torch.Tensor,  # [size]
    eps: float,
    residual: torch.Tensor | None = None,  # as x, contiguous; overwritten by the sum
    *,
    offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(normed, total)`: total is `x + residual` rounded to their type (or x), normed its norm, contiguous.

    The norm is taken in fp32. With `offset` it is multiplied by `1 + weight` and then rounded (Gemma); otherwise
    rounded, then multiplied (Llama), as transformers does.

    Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError without triton.
    """
    check_device("rms_norm", x)
    size, inner = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    rows = x.numel() // size if size else 0
    assert x.dim() in (2, 3), f"rms_norm takes two or three dimensions, not {x.dim()}"
    assert x.stride(-1) == 1, "rows must be contiguous"
    if residual is not None:
        assert (residual.shape, residual.dtype) == (x.shape, x.dtype), "the residual must be like x"
        assert residual.is_contiguous(), "the residual must be contiguous"
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = x if residual is None else residual
    if rows == 0:
        return normed, total
    launch = launch_configuration(size, offset=offset, has_residual=residual is not None)
    with on_device(x):
        rms_norm_kernel[(-(-rows // launch["ROWS"]),)](
            normed, x, total, weight, rows, inner, x.stride(0), x.stride(1) if x.dim() == 3 else 0, eps, **launch
        )
    return normed, total


def launch_configuration(size: int, *, offset: bool, has_residual: bool) -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    padded = next_power_of_two(size)
    rows = max(1, BLOCK // padded)
    return {
        "SIZE": size,
        "PADDED": padded,
        "ROWS": rows,
        "OFFSET": offset,
        "HAS_RESIDUAL": has_residual,
        "num_warps": max(1, min(16, rows * padded // 512)),
        "num_stages": 1,
        **FUSION,
    }


@jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    normed_pointer,  # [num_rows, SIZE]
    x_pointer,
    total_pointer,  # [num_rows, SIZE]
    weight_pointer,
    num_rows,
    inner,  # rows of the second dimension
    outer_stride,
    inner_stride,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """A program: ROWS rows; grid (row blocks,)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    mask = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    start = row // inner * outer_stride + row % inner * inner_stride
    x = tl.load(x_pointer + start[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    contiguous = row[:, None] * SIZE + column[None, :]
    if HAS_RESIDUAL:
        x += tl.load(total_pointer + contiguous, mask=mask, other=0.0).to(tl.float32)
        total = x.to(total_pointer.dtype.element_ty)
        tl.store(total_pointer + contiguous, total, mask=mask)
        x = total.to(tl.float32)  # the next layer reads the rounded sum
    normed = x * tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)[:, None]
    weight = tl.load(weight_pointer + column, mask=column < SIZE, other=0.0).to(tl.float32)[None, :]
    if OFFSET:
        normed = normed * (1.0 + weight)
    else:
        normed = normed.to(normed_pointer.dtype.element_ty).to(tl.float32) * weight
    tl.store(normed_pointer + contiguous, normed.to(normed_pointer.dtype.element_ty), mask=mask)


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None, *, offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch, with nothing overwritten."""
    total = x if residual is None else x + residual
    normed = total.float() / torch.sqrt(total.float().square().mean(-1, keepdim=True) + eps)
    if offset:
        return (normed * (1.0 + weight.float())).to(x.dtype), total
    return normed.to(x.dtype) * weight, total
