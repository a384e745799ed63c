"""Inputs for the kernels that are not attention, and the check of each against its torch reference on a device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmsql.kernels import activation, kv_write, log_probs, merge, norm, rotary

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Check = Callable[[torch.dtype, str], list[tuple[torch.Tensor, torch.Tensor]]]


def check(name: str, dtype: torch.dtype, device: str) -> None:
    for out, expected in CASES[name](dtype, device):
        assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
        # Relative too: the last digit of a large number.
        torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def _normal(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def _norm(*shape: int, offset: bool = False, residual: bool = False, strided: bool = False) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        x = _normal(*shape, dtype=dtype, device=device)
        if strided:  # the first heads of a wider projection
            wide = _normal(shape[0], shape[1] + 3, shape[2], dtype=dtype, device=device)
            x = wide[:, : shape[1]]
        weight = _normal(shape[-1], dtype=dtype, device=device, seed=1)
        added = _normal(*shape, dtype=dtype, device=device, seed=2) if residual else None
        expected = norm.rms_norm_reference(x, weight, 1e-6, added, offset=offset)
        normed, total = norm.rms_norm(x, weight, 1e-6, added, offset=offset)
        assert total is (x if added is None else added)
        return [(normed, expected[0]), (total, expected[1])]

    return run


def _rotary(heads: int, kv_heads: int, head_dim: int, value_dim: int, tokens: int = 4) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        width = heads * head_dim + kv_heads * (head_dim + value_dim)
        merged = _normal(tokens, width, dtype=dtype, device=device)
        sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * value_dim]
        query, key, value = merged.split(sizes, dim=1)
        query, key = query.view(tokens, heads, head_dim), key.view(tokens, kv_heads, head_dim)
        value = value.view(tokens, kv_heads, value_dim)
        angles = _normal(11, head_dim // 2, dtype=torch.float32, device=device, seed=1) * 3
        positions = torch.tensor([3, 0, 10, 3][:tokens], device=device)
        slots = torch.tensor([6, -1, 0, 1][:tokens], device=device)
        pools = [
            _normal(7, kv_heads, dim, dtype=dtype, device=device, seed=2 + i)
            for i, dim in enumerate((head_dim, value_dim))
        ]
        wanted = [pool.clone() for pool in pools]
        rest = (angles.cos(), angles.sin(), positions)
        expected = rotary.rotary_and_write_reference(query, key, value, *rest, *wanted, slots)
        out = rotary.rotary_and_write(query, key, value, *rest, *pools, slots)
        return [(out, expected), *zip(pools, wanted)]

    return run


def _kv_write(kv_heads: int, key_dim: int, value_dim: int, tokens: int = 4) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # As transformers hands them over: heads outside.
        key = _normal(kv_heads, tokens, key_dim, dtype=dtype, device=device).transpose(0, 1)
        value = _normal(kv_heads, tokens, value_dim, dtype=dtype, device=device, seed=1).transpose(0, 1)
        slots = torch.tensor([5, -1, 0, 2][:tokens], device=device, dtype=torch.int64)
        pools = [torch.zeros(6, kv_heads, dim, dtype=dtype, device=device) for dim in (key_dim, value_dim)]
        wanted = [pool.clone() for pool in pools]
        kv_write.write_kv_reference(key, value, *wanted, slots)
        kv_write.write_kv(key, value, *pools, slots)
        return list(zip(pools, wanted))

    return run


def _gated(name: str, rows: int, size: int, scale: float = 1.0) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        gate_up = _normal(rows, 2 * size, dtype=dtype, device=device) * scale
        kernel, reference = getattr(activation, name), getattr(activation, name + "_reference")
        return [(kernel(gate_up), reference(gate_up))]

    return run


def _log_probs(rows: int, vocab: int, read: list[int], counts: list[int]) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        logits = (_normal(rows, vocab + 8, dtype=dtype, device=device) * 8)[:, :vocab]  # rows lie apart
        start = torch.tensor([0, *counts], device=device).cumsum(0)
        tokens = torch.randint(0, vocab, (sum(counts),), generator=torch.Generator().manual_seed(1)).to(device)
        arguments = (logits, torch.tensor(read, dtype=torch.int64, device=device), start, tokens)
        out, expected = log_probs.gathered_log_softmax(*arguments), log_probs.gathered_log_softmax_reference(*arguments)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)  # fp32, whatever the type of the logits
        return [(out, expected)]

    return run


def _merge(tokens: int, heads: int, value_dim: int, counts: list[int]) -> Check:
    def run(dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = _normal(sum(counts), heads, value_dim, dtype=torch.float32, device=device)
        lse = _normal(sum(counts), heads, dtype=torch.float32, device=device, seed=1) * 30
        out = torch.full((tokens, heads, value_dim), 7.0, dtype=dtype, device=device)
        wanted = out.clone()
        token = torch.arange(0, 2 * len(counts), 2, dtype=torch.int32, device=device)
        start = torch.tensor([0, *counts], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        wanted[token.long()] = merge.merge_parts_reference(parts, lse, start).to(dtype)
        merge.merge_parts(out, parts, lse, token, start)
        return [(out, wanted)]

    return run


CASES: dict[str, Check] = {
    "norm": _norm(3, 48),
    "norm of wide rows": _norm(2, 1500, residual=True),
    "norm, offset": _norm(5, 64, offset=True),
    "norm, residual": _norm(3, 64, residual=True),
    "norm, residual, offset": _norm(2, 20, residual=True, offset=True),
    "norm of heads": _norm(3, 5, 16, strided=True),
    "norm of heads, offset": _norm(70, 2, 32, strided=True, offset=True),
    "norm of one number": _norm(2, 1),
    "norm of no rows": _norm(0, 16),
    "rotary": _rotary(4, 2, 16, 16),
    "rotary of odd shapes": _rotary(3, 1, 10, 7),
    "rotary of no tokens": _rotary(2, 1, 8, 8, tokens=0),
    "kv write": _kv_write(2, 16, 16),
    "kv write of odd shapes": _kv_write(3, 5, 7),
    "kv write of no tokens": _kv_write(1, 4, 4, tokens=0),
    "silu": _gated("silu_and_mul", 3, 40),
    "silu of wide rows": _gated("silu_and_mul", 2, 1025),
    "silu of large numbers": _gated("silu_and_mul", 2, 16, scale=60.0),
    "gelu": _gated("gelu_and_mul", 3, 40),
    "gelu of large numbers": _gated("gelu_and_mul", 2, 16, scale=20.0),
    "silu of no rows": _gated("silu_and_mul", 0, 16),
    "log-probs": _log_probs(4, 100, [0, 2], [3, 1]),
    "log-probs of large vocabularies": _log_probs(3, 9001, [2, 0, 1], [1, 0, 40]),
    "log-probs of one token": _log_probs(1, 1, [0], [2]),
    "log-probs of nothing": _log_probs(1, 10, [], []),
    "merge": _merge(8, 3, 16, [2, 1, 5]),
    "merge of many heads": _merge(2, 9, 20, [3]),
    "merge of nothing": _merge(2, 2, 8, []),
}
