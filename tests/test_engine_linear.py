"""Merged and packed weights multiply like the modules they come from, and hold nothing twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmsql.gpu_backend.kernel_choice import why_not_native
from llmsql.gpu_backend.linear import Linear, MergedLinear, PackedLinear, SplitLinear, can_pack, join
from llmsql.gpu_backend.native_linear import NativeLinear
from llmsql.gpu_backend.row_sizes import RowSizes

KINDS = [MergedLinear, SplitLinear, PackedLinear, *([NativeLinear] if why_not_native() is None else [])]


def modules(outputs: list[int], *, dtype: torch.dtype, bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(24, size, bias=bias, dtype=dtype).requires_grad_(False) for size in outputs]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    outputs=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    rows=st.sampled_from([0, 1, 2, 7, 33]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
)
def test_one_product_for_all_modules(kind: type, outputs: list[int], rows: int, dtype: torch.dtype, bias: bool) -> None:
    parts = modules(outputs, dtype=dtype, bias=bias)
    if kind is PackedLinear and not can_pack(parts[0].weight):
        return
    x = torch.randn(rows, 24, dtype=dtype)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    weights = [part.weight.clone() for part in parts]
    linear: Linear = kind(parts, RowSizes()) if kind in (SplitLinear, PackedLinear) else kind(parts)
    torch.testing.assert_close(linear(x), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    linear.restore()
    assert all(torch.equal(part.weight, weight) for part, weight in zip(parts, weights))


def test_a_bias_of_some_modules_only() -> None:
    parts = [*modules([5], dtype=torch.float32, bias=True), *modules([3], dtype=torch.float32, bias=False)]
    x = torch.randn(4, 24)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(MergedLinear(parts)(x), expected)


def test_merged_weights_are_the_modules_weights() -> None:
    parts = modules([5, 3], dtype=torch.float32, bias=False)
    merged = MergedLinear(parts)
    (storage,) = {part.weight.untyped_storage().data_ptr() for part in parts}
    assert merged._weight.untyped_storage().data_ptr() == storage
    (alone,) = modules([5], dtype=torch.float32, bias=False)
    assert MergedLinear([alone])._weight is alone.weight


def test_packed_weights_replace_the_modules_weights() -> None:
    parts = modules([5, 3], dtype=torch.float32, bias=True)
    if not can_pack(parts[0].weight):
        pytest.skip("this torch has no oneDNN")
    sizes = RowSizes()
    assert isinstance(join(parts, row_sizes=sizes), PackedLinear)
    assert [part.weight.numel() for part in parts] == [0, 0]
    assert isinstance(join(modules([5], dtype=torch.float32, bias=False), row_sizes=sizes, copy=False), SplitLinear)
    assert isinstance(join(modules([5], dtype=torch.float16, bias=False), row_sizes=sizes), MergedLinear)


def test_numbers_of_rows_are_rounded_to_few_sizes() -> None:
    sizes = RowSizes()
    padded = [sizes.padded(rows) for rows in range(1, 1025)]
    assert all(rows <= size <= max(rows + 3, rows * 1.25) for rows, size in zip(range(1, 1025), padded))
    assert len(set(padded)) <= 32
    assert [sizes.padded(rows) for rows in (1, 4, 16, 64, 256, 1024, 0)] == [1, 4, 16, 64, 256, 1024, 0]


def test_numbers_that_come_again_are_used_as_they_are() -> None:
    sizes = RowSizes()
    for _ in range(4):
        assert sizes.padded(100) == 112
        sizes.count(100)
    assert sizes.padded(100) == 100
    for rows in range(65, 256):
        for _ in range(9):
            sizes.count(rows)
    assert sum(sizes.padded(rows) == rows for rows in range(65, 256)) < 16 + 9, "16 of them at most, and the sizes"
