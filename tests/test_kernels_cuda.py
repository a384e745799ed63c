"""The compiled kernels on a GPU against their torch references, in the types that models use."""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import CASES, DTYPES, TOLERANCE, check
from kernel_cases import Case, Node, Row, branching, build, random_case

from llmsql.kernels import paged_attention, paged_attention_reference

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUTS = (
    {"levels": 0, "processors": 1},
    {"levels": 0, "processors": 64},
    {"levels": 9, "processors": 1},
    {"levels": 2, "processors": 64},
)


def check_attention(case: Case) -> None:
    expected = paged_attention_reference(*case.arguments, **case.options)
    on_device = case.to("cuda")
    for cut in CUTS:
        out = paged_attention(*on_device.arguments, case.work(**cut).to("cuda"), **case.options).cpu()
        torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[out.dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sliding_window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_branching_tree(dtype, sliding_window, softcap):
    check_attention(branching(dtype=dtype, heads=4, kv_heads=2, sliding_window=sliding_window, softcap=softcap))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (5, 1), (14, 2)])
def test_shapes(heads, kv_heads, head_dim, dtype):
    nodes = [Node(None, 150), Node(0, 70, continues=True), Node(1, 9), Node(0, 20)]
    rows = [Row(1, 0, 220), Row(2, 228, 1), Row(1, 140, 40), Row(3, 169, 1), Row(2, 220, 1)]
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    check_attention(build(nodes, rows, block_size=16, dtype=dtype, **shape))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_random_trees(seed, dtype):
    check_attention(random_case(seed, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_other_kernels(name, dtype):
    check(name, dtype, "cuda")
