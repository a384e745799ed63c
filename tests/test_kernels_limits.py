"""What paged_attention refuses, and what it says."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from kernel_cases import Node, Row, build

from llmsql.kernels import paged_attention


def call(query=None, key_pool=None, value_pool=None, **options):
    case = build([Node(None, 5)], [Row(0, 2, 3)], heads=4, kv_heads=2)
    given = [query, key_pool, value_pool]
    tensors = [a if b is None else b for a, b in zip((case.query, case.key_pool, case.value_pool), given)]
    return paged_attention(*tensors, case.table, **(case.options | options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(3, 64)}, r"query \[tokens, heads, head_dim\].* not \(3, 64\)"),
        ({"query": torch.zeros(3, 4, 32)}, "head_dim is 32 in the query and 16 in the pool"),
        ({"query": torch.zeros(3, 5, 16)}, "5 heads over 2 KV heads"),
        ({"query": torch.zeros(3, 512, 16)}, "512 heads over 2 KV heads"),
        ({"query": torch.zeros(3, 4, 16).half()}, "not torch.float16, torch.float32 and torch.float32"),
        ({"query": torch.zeros(3, 16, 4).transpose(1, 2)}, "must be contiguous"),
        ({"query": torch.zeros(3, 4, 16, device="meta")}, "move them to one device"),
        ({"block_size": 7}, "not a whole number of blocks of 7"),
        ({"block_size": 0}, "not a whole number of blocks of 0"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"softcap": 0.0}, "softcap is 0.0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_refuses_head_dim_beyond_the_limit():
    pool = torch.zeros(8, 2, 264)
    with pytest.raises(ValueError, match="at most 256"):
        call(query=torch.zeros(3, 4, 264), key_pool=pool, value_pool=pool)


def test_says_that_triton_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match="needs triton, which is not installed"):
        call()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_refuses_cpu_tensors():
    pytest.importorskip("triton", reason="triton is not installed")
    with pytest.raises(RuntimeError, match="runs on CUDA tensors, these are on cpu"):
        call()
