"""Merge of partial attention results: n parts of a token joined in one pass by their log-sum-exps.

Attention over disjoint sets of keys is joined by `out = sum_i exp(lse_i - lse) out_i`, `lse = log sum_i exp(lse_i)`
(Ye et al., "Cascade Inference", 2024, section "Attention states"). Split keys and the levels of a cascade need the same
merge, and it is one pass over any number of parts, in fp32. A part that saw no key has the log-sum-exp -inf and counts
nothing; where all parts are such, the result is zero.

Limits: parts contiguous and fp32, any number of heads, value dimension up to 256.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from .language import FUSION, check_device, jit, next_power_of_two, on_device, tl

HEADS = 4  # per program


def merge_parts(
    out: torch.Tensor,  # [tokens, heads, value_dim] contiguous
    parts: torch.Tensor,  # [parts, heads, value_dim] fp32, each normalised
    lse: torch.Tensor,  # [parts, heads] fp32
    merge_token: torch.Tensor,  # [merged] int32
    merge_start: torch.Tensor,  # [merged + 1] int32
) -> None:
    """Write `out[merge_token[i]]`, the merge of the part rows `merge_start[i]` to `merge_start[i + 1]`; others stay.

    Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError without triton.
    """
    check_device("merge_parts", out)
    assert all(tensor.is_contiguous() for tensor in (out, parts, lse)), "merge_parts takes contiguous tensors"
    if len(merge_token) == 0:
        return
    _, heads, value_dim = out.shape
    with on_device(out):
        merge_parts_kernel[(len(merge_token), -(-heads // HEADS))](
            out, parts, lse, merge_token, merge_start, heads, **launch_configuration(value_dim)
        )


def launch_configuration(value_dim: int) -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    padded = next_power_of_two(value_dim)
    constants = {"VALUE_DIM": value_dim, "PADDED_VALUE": padded, "HEADS": HEADS}
    return {**constants, "num_warps": max(1, min(4, HEADS * padded // 128)), "num_stages": 2, **FUSION}


@jit(do_not_specialize=["num_heads"])
def merge_parts_kernel(
    out_pointer,  # [tokens, num_heads, VALUE_DIM]
    part_pointer,  # [parts, num_heads, VALUE_DIM] fp32
    lse_pointer,  # [parts, num_heads] fp32
    merge_token,
    merge_start,
    num_heads,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    HEADS: tl.constexpr,
):
    """A program: HEADS heads of one token; grid (merged tokens, head blocks)."""
    merged = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dim = tl.arange(0, PADDED_VALUE)
    is_head = head < num_heads
    mask = is_head[:, None] & (dim < VALUE_DIM)[None, :]
    best = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.full([HEADS], 0.0, tl.float32)
    result = tl.full([HEADS, PADDED_VALUE], 0.0, tl.float32)
    for part in range(tl.load(merge_start + merged), tl.load(merge_start + merged + 1)):
        row = tl.cast(part, tl.int64) * num_heads + head
        lse = tl.load(lse_pointer + row, mask=is_head, other=float("-inf"))
        value = tl.load(part_pointer + row[:, None] * VALUE_DIM + dim[None, :], mask=mask, other=0.0)
        new_best = tl.maximum(best, lse)
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)
        weight = tl.exp(lse - shift)
        keep = tl.exp(best - shift)
        total = total * keep + weight
        result = result * keep[:, None] + value * weight[:, None]
        best = new_best
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    row = tl.load(merge_token + merged).to(tl.int64) * num_heads + head
    tl.store(out_pointer + row[:, None] * VALUE_DIM + dim[None, :], result.to(out_pointer.dtype.element_ty), mask=mask)


def merge_parts_reference(
    parts: torch.Tensor,  # [parts, heads, value_dim]
    lse: torch.Tensor,  # [parts, heads]
    merge_start: torch.Tensor,  # [merged + 1]
) -> torch.Tensor:
    """What `merge_parts` writes for each merged token, [merged, heads, value_dim] in fp64, by torch's softmax."""
    merged = []
    for begin, end in pairwise(merge_start.tolist()):
        weights = torch.softmax(lse[begin:end].double(), dim=0).nan_to_num(0.0)  # NaN: no part saw a key
        merged.append((parts[begin:end].double() * weights[..., None]).sum(0))
    return torch.stack(merged) if merged else parts.new_zeros((0, *parts.shape[1:]), dtype=torch.float64)
