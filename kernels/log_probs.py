"""Gathered log-softmax: the log-probabilities of some tokens of each row, in one pass over the logits.

The maximum and the sum of exponentials are carried along together (Milakov and Gimelshein 2018), so the logits are read
once, in their own type, and no copy of them is made. Limits: float16, bfloat16 or float32, rows contiguous, any
vocabulary.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch

from .language import FUSION, check_device, jit, on_device, tl

BLOCK = 4096  # logits per step
TOKENS = 32  # gathered per step


def gathered_log_softmax(
    logits: torch.Tensor,  # [logit rows, vocab]
    rows: torch.Tensor,  # [rows] int64, which logit rows are read
    token_start: torch.Tensor,  # [rows + 1] int64, where a row's tokens begin in `token_ids`
    token_ids: torch.Tensor,  # [tokens] int64
) -> torch.Tensor:
    """log softmax(logits[rows[i]]) at the tokens `token_start[i]` to `token_start[i + 1]`, [tokens] fp32.

    NaN where the row holds a NaN. Raises RuntimeError where the tensors are not on a CUDA device, ModuleNotFoundError
    without triton.
    """
    check_device("gathered_log_softmax", logits)
    assert logits.stride(1) == 1, "rows of logits must be contiguous"
    out = torch.empty(len(token_ids), dtype=torch.float32, device=logits.device)
    if len(rows):
        with on_device(logits):
            gathered_log_softmax_kernel[(len(rows),)](
                out, logits, rows, token_start, token_ids, logits.shape[1], logits.stride(0), **launch_configuration()
            )
    return out


def launch_configuration() -> dict[str, Any]:
    """What is fixed when the kernel is compiled."""
    return {"BLOCK": BLOCK, "TOKENS": TOKENS, "num_warps": 8, "num_stages": 3, **FUSION}


@jit
def gathered_log_softmax_kernel(
    out_pointer,
    logits_pointer,
    rows,
    token_start,
    token_ids,
    vocab,
    row_stride,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """A program: one row; grid (rows,)."""
    row = tl.program_id(0)
    start = logits_pointer + tl.load(rows + row).to(tl.int64) * row_stride
    best = tl.full([BLOCK], float("-inf"), tl.float32)  # of each column of blocks
    total = tl.full([BLOCK], 0.0, tl.float32)
    for begin in range(0, vocab, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        logit = tl.load(start + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
        new_best = tl.maximum(best, logit)
        shift = tl.where(tl.abs(new_best) == float("inf"), 0.0, new_best)  # an infinite one stays what it is
        total = total * tl.exp(best - shift) + tl.exp(logit - shift)  # a NaN stays in the sum
        best = new_best
    highest = tl.max(best, 0)
    shift = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
    log_total = shift + tl.log(tl.sum(total * tl.exp(best - shift), 0))
    end = tl.load(token_start + row + 1)
    for begin in range(tl.load(token_start + row), end, TOKENS):
        index = begin + tl.arange(0, TOKENS)
        token = tl.load(token_ids + index, mask=index < end, other=0)
        logit = tl.load(start + token, mask=index < end, other=0.0).to(tl.float32)
        tl.store(out_pointer + index, logit - log_total, mask=index < end)


def gathered_log_softmax_reference(
    logits: torch.Tensor, rows: torch.Tensor, token_start: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """The same by torch's logsumexp of whole rows, in fp64."""
    row_of = torch.repeat_interleave(rows, token_start.diff())
    return (logits.double()[row_of, token_ids] - logits.double().logsumexp(-1)[row_of]).float()
