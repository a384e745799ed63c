"""The decoder's small operations against the modules of transformers that they stand for."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from llmsql.gpu_backend.operators import TorchOperators

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPERATORS = TorchOperators()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("shape", [(5, 48), (5, 3, 16), (0, 48)])
def test_norm(dtype: torch.dtype, kind: type, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = kind(shape[-1], eps=1e-3).to(dtype).requires_grad_(False)
    module.weight.normal_()
    x, residual = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    kept, total = x.clone(), x + residual
    options = {"eps": 1e-3, "offset": kind is Gemma3RMSNorm}
    normed, same = OPERATORS.rms_norm(x, module.weight, **options)
    torch.testing.assert_close(normed, module(x))
    assert same is x
    assert torch.equal(x, kept), "x is consumed only by the sum"
    normed, summed = OPERATORS.rms_norm(x, module.weight, residual=residual, **options)
    torch.testing.assert_close(normed, module(total))
    assert torch.equal(summed, total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_and_write(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens, heads, kv_heads, size = 6, 4, 2, 16
    merged = torch.randn(tokens, heads + 2 * kv_heads, size, dtype=dtype)
    query, key, value = torch.split(merged, [heads, kv_heads, kv_heads], dim=1)
    angles = torch.rand(40, size // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    positions, slots = torch.tensor([3, 0, 39, 7, 7, 1]), torch.tensor([8, 2, 0, 9, 4, 11])
    full = [torch.cat([part, part], dim=-1)[positions][None].to(dtype) for part in (cos, sin)]
    expected = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], *full)
    expected_query, expected_key = (part[0].transpose(0, 1) for part in expected)
    keys, values = (
        torch.full((12, kv_heads, size), 5.0, dtype=dtype),
        torch.full((12, kv_heads, size), 5.0, dtype=dtype),
    )
    cos, sin = OPERATORS.angles(cos, sin, positions, dtype)
    rotated = OPERATORS.rotary_and_write(query, key, value, cos, sin, positions, keys, values, slots)
    tolerance = {"atol": 1e-6 if dtype == torch.float32 else 2e-2, "rtol": 0.0}
    torch.testing.assert_close(rotated, expected_query, **tolerance)
    torch.testing.assert_close(keys[slots], expected_key, **tolerance)
    assert torch.equal(values[slots], value)
    others = [slot for slot in range(12) if slot not in slots.tolist()]
    assert bool((keys[others] == 5.0).all())
    assert bool((values[others] == 5.0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "activation"), [("silu_and_mul", "silu"), ("gelu_and_mul", "gelu_pytorch_tanh")])
def test_activations(dtype: torch.dtype, name: str, activation: str) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(5, 2 * 24, dtype=dtype)
    gate, up = gate_up.clone().chunk(2, dim=-1)
    product = getattr(OPERATORS, name)(gate_up)
    torch.testing.assert_close(product, ACT2FN[activation](gate) * up)
    assert product.is_contiguous()
