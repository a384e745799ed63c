"""The compiled kernel on a GPU against the torch reference, in the types that models use."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Node, Row, branching, build, random_case

from llmsql.kernels import paged_attention, paged_attention_reference

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def check(case):
    on_device = case.to("cuda")
    out = paged_attention(*on_device.arguments, **case.options).cpu()
    expected = paged_attention_reference(*case.arguments, **case.options)
    torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[out.dtype], rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sliding_window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_branching_tree(dtype, sliding_window, softcap):
    check(branching(dtype=dtype, heads=4, kv_heads=2, sliding_window=sliding_window, softcap=softcap))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (5, 1)])
def test_shapes(heads, kv_heads, head_dim, dtype):
    nodes = [Node(None, 150), Node(0, 70, continues=True), Node(1, 9)]
    rows = [Row(1, 0, 220), Row(2, 228, 1), Row(1, 140, 40)]
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    check(build(nodes, rows, block_size=16, dtype=dtype, **shape))
    check(build(nodes, [Row(2, 228, 1), Row(2, 220, 1)], block_size=16, dtype=dtype, **shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_random_trees(seed, dtype):
    check(random_case(seed, dtype=dtype))
