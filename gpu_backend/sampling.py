"""From logits to tokens: greedy, or drawn with a seed of the request's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def greedy(logits: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The most likely token of each row of [rows, vocab], and whether the row is usable (holds no NaN)."""
    best, token_ids = logits.max(dim=-1)
    return token_ids.cpu().numpy(), ~torch.isnan(best).cpu().numpy()


def draw(
    logits: torch.Tensor,  # [rows, vocab]
    temperatures: list[float],
    seeds: list[int],
    steps: list[int],
) -> npt.NDArray[np.int64]:
    """One token of each row from softmax(logits / temperature).

    A row's random number depends on its seed and on how many tokens it has generated, on nothing else in the batch.
    """
    scale = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)[:, None]
    cumulative = torch.softmax(logits.float() / scale, dim=-1).double().cumsum(dim=-1)
    uniform = [np.random.Generator(np.random.Philox(key=[seed, step])).random() for seed, step in zip(seeds, steps)]
    targets = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    token_ids = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    result: npt.NDArray[np.int64] = token_ids.clamp_(max=logits.shape[-1] - 1).cpu().numpy()
    return result


def label_log_probs(
    logits: torch.Tensor,  # [rows, vocab]
    rows: list[int],
    token_ids: list[int],
) -> npt.NDArray[np.float64]:
    """log softmax(logits[row])[token] of each pair, float64; NaN where the row holds a NaN."""
    used, inverse = np.unique(np.array(rows), return_inverse=True)
    chosen = logits[torch.from_numpy(used).to(logits.device)].float()
    index = torch.from_numpy(inverse).to(logits.device)
    tokens = torch.tensor(token_ids, device=logits.device)
    log_probs = chosen[index, tokens] - torch.logsumexp(chosen, dim=-1)[index]
    result: npt.NDArray[np.float64] = log_probs.double().cpu().numpy()
    return result
