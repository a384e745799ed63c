"""The torch reference of paged attention against dense masked softmax attention over keys that were never paged."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Node, Row, branching, build, dense_attention, random_case

from llmsql.kernels import paged_attention_reference


@pytest.mark.parametrize("sliding_window", [None, 1, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (5, 1)])
def test_reference_equals_dense_attention(heads, kv_heads, sliding_window, softcap):
    case = branching(heads=heads, kv_heads=kv_heads, sliding_window=sliding_window, softcap=softcap)
    out = paged_attention_reference(*case.arguments, **case.options)
    torch.testing.assert_close(out.double(), dense_attention(case), atol=2e-6, rtol=0)


@pytest.mark.parametrize("seed", range(40))
def test_reference_equals_dense_attention_on_random_trees(seed):
    case = random_case(seed)
    out = paged_attention_reference(*case.arguments, **case.options)
    torch.testing.assert_close(out.double(), dense_attention(case), atol=2e-6, rtol=0)


def test_reference_keeps_the_type_of_the_query():
    case = branching(dtype=torch.bfloat16)
    out = paged_attention_reference(*case.arguments, **case.options)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), dense_attention(case), atol=2e-2, rtol=0)


def test_first_token_attends_to_itself_only():
    case = build([Node(None, 3)], [Row(0, 0, 1)], heads=1)
    out = paged_attention_reference(*case.arguments, **case.options)
    torch.testing.assert_close(out[0], case.paths[0][1][0])
