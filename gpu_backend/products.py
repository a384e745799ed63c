"""Attention of blocks of queries over blocks of keys as torch products, and the merge of two such results."""

from __future__ import annotations

import torch

_flash_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)

MAX_SCORES = 500_000
"""Scores held at one time where torch's flash kernel does not serve: more do not stay in the processor's cache."""


def attend_blocks(
    query: torch.Tensor,  # [blocks, kv_heads, queries, key_dim]
    key: torch.Tensor,  # [blocks, kv_heads, keys, key_dim]
    value: torch.Tensor,  # [blocks, kv_heads, keys, value_dim]
    mask: torch.Tensor | None,  # [blocks or 1, 1, queries or 1, keys] added to the scores
    *,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of the scores, [blocks, queries, kv_heads, value_dim] and [blocks, queries, kv_heads]."""
    if _flash_cpu is not None and softcap is None and query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        out, lse = _flash_cpu(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
        return out.transpose(1, 2), lse.transpose(1, 2)  # views of how the kernel lays them out
    blocks, kv_heads, queries, _ = query.shape
    out = query.new_empty((blocks, queries, kv_heads, value.shape[-1]))
    lse = query.new_empty((blocks, queries, kv_heads), dtype=torch.float32)
    key, value = key.float().transpose(-1, -2), value.float()
    size = max(1, MAX_SCORES // (blocks * kv_heads * key.shape[-1]))
    for begin in range(0, queries, size):
        span = slice(begin, min(begin + size, queries))
        part_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, span]
        scores = torch.matmul(query[:, :, span].float() * scale, key)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        if part_mask is not None:
            scores += part_mask
        highest = scores.amax(dim=-1, keepdim=True)
        total = scores.sub_(highest).exp_().sum(dim=-1, keepdim=True)
        out[:, span] = torch.matmul(scores, value).div_(total).transpose(1, 2)
        lse[:, span] = total.log_().add_(highest).squeeze(-1).transpose(1, 2)
    return out, lse


def merge_into(
    out: torch.Tensor,  # [tokens, ..., value_dim] float32, changed in place
    lse: torch.Tensor,  # [tokens, ...] float32, changed in place
    other_out: torch.Tensor,  # [len(tokens), ..., value_dim]
    other_lse: torch.Tensor,  # [len(tokens), ...]
    *,
    tokens: torch.Tensor | slice,
    keep_lse: bool,
) -> None:
    """Let `tokens` attend to further keys: outputs over disjoint sets of keys are weighted by exp(lse), in float32.

    `keep_lse=False` leaves `lse` as it was, where nothing more will be merged.
    """
    own_out, own_lse = out[tokens], lse[tokens]
    weight = (other_lse - own_lse).sigmoid_()[..., None]
    own_out.lerp_(other_out.float(), weight)
    if not isinstance(tokens, slice):
        out[tokens] = own_out
    if keep_lse:
        lse[tokens] = torch.logaddexp(own_lse, other_lse)
