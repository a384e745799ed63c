"""From logits to tokens: greedy, or drawn with a seed of the request's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_SLICE = 2**22
"""Numbers of one slice at most: rows are worked on in slices, so that temporary copies stay small."""


@dataclass(frozen=True)
class Draw:
    """How one row's token is drawn; the fields are those of `Request`, in the order in which they are applied."""

    temperature: float
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    step: int = 0
    """Tokens that the row has generated: the random number depends on seed and step, on nothing else in the batch."""

    @property
    def filters(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


def greedy(logits: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The most likely token of each row of [rows, vocab], and whether its logit is finite (no NaN, not all -inf)."""
    best, token_ids = logits.max(dim=-1)
    return token_ids.cpu().numpy(), torch.isfinite(best).cpu().numpy()


def draw(logits: torch.Tensor, draws: Sequence[Draw]) -> npt.NDArray[np.int64]:
    """One token of each row of [rows, vocab]; every row must have a finite number."""
    return np.concatenate([_draw(logits[rows], draws[rows]) for rows in _slices(logits)])


def label_log_probs(
    logits: torch.Tensor,  # [rows, vocab]
    rows: Sequence[int],
    token_ids: Sequence[int],
    *,
    kernels: bool = False,
) -> npt.NDArray[np.float64]:
    """log softmax(logits[row])[token] of each pair, float64; NaN where the row holds a NaN.

    Only the sum over each row that is used is computed, in float32, and one number read per pair; with `kernels`, in
    one pass by Triton's.
    """
    if kernels:
        return _label_log_probs_by_kernel(logits, np.array(rows, np.int64), np.array(token_ids, np.int64))
    used, inverse = np.unique(np.array(rows, np.int64), return_inverse=True)
    totals = torch.empty(len(used), dtype=torch.float32, device=logits.device)
    chosen = logits if len(used) == len(logits) else logits[torch.from_numpy(used).to(logits.device)]
    for part in _slices(chosen):
        totals[part] = torch.logsumexp(chosen[part].float(), dim=-1)
    index = torch.from_numpy(inverse).to(logits.device)
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    log_probs: npt.NDArray[np.float64] = (chosen[index, tokens].float() - totals[index]).double().cpu().numpy()
    return log_probs


def _label_log_probs_by_kernel(
    logits: torch.Tensor, rows: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    from llmsql.kernels import gathered_log_softmax  # loads triton

    order = np.argsort(rows, kind="stable")
    used, counts = np.unique(rows, return_counts=True)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    arguments = (torch.from_numpy(array).to(logits.device) for array in (used, starts, token_ids[order]))
    log_probs = np.empty(len(rows))
    log_probs[order] = gathered_log_softmax(logits, *arguments).double().cpu().numpy()
    return log_probs


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> npt.NDArray[np.int64]:
    logits = logits.float()
    temperatures = [max(each.temperature, 1e-30) for each in draws]  # smaller ones are 0 in float32
    scale = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)[:, None]
    weights = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / scale, dim=-1)
    filtered = [row for row, each in enumerate(draws) if each.filters]
    if filtered:
        index = torch.tensor(filtered, device=logits.device)
        weights[index] = _most_likely(weights[index], [draws[row] for row in filtered])
    cumulative = weights.double().cumsum(dim=-1)
    uniform = [np.random.Generator(np.random.Philox(key=[each.seed, each.step])).random() for each in draws]
    targets = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    token_ids: npt.NDArray[np.int64] = torch.searchsorted(cumulative, targets, right=True).squeeze(-1).cpu().numpy()
    return token_ids


def _most_likely(weights: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """`weights` [rows, vocab], which add up to 1, with 0 for the tokens that each row leaves out.

    Each filter keeps the tokens from a least weight on, so that equal ones stay or go together.
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=weights.device)[:, None]

    vocab = weights.shape[-1]
    kept = [vocab if each.top_k is None else min(each.top_k, vocab) for each in draws]
    needed = [count for count, each in zip(kept, draws) if count < vocab or each.top_p < 1]
    width = max(needed, default=1)  # the largest weights decide, and are the same however many other rows need
    largest = (weights.topk(width, dim=-1) if width < vocab else weights.sort(dim=-1, descending=True)).values.double()
    rank = torch.arange(width, device=weights.device)
    inside = rank < column(kept)
    cumulative = torch.where(inside, largest, 0.0).cumsum(dim=-1)
    inside &= cumulative - largest < column([each.top_p for each in draws]) * cumulative[:, -1:]
    least = torch.where(inside, largest, torch.inf).amin(dim=-1, keepdim=True)
    unlimited = column([count == vocab and each.top_p == 1 for count, each in zip(kept, draws)]) > 0
    least = torch.where(unlimited, 0.0, least)
    least = torch.maximum(least, column([each.min_p for each in draws]) * largest[:, :1])
    return torch.where(weights.double() >= least, weights, 0.0)


def _slices(logits: torch.Tensor) -> list[slice]:
    """Rows in slices of at most `_SLICE` numbers, and at least one row."""
    rows = max(1, _SLICE // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
