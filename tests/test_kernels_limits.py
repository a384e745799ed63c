"""What paged_attention refuses, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kernel_cases import Node, Row, build

from llmsql.kernels import activation, kv_write, language, log_probs, merge, norm, paged_attention, rotary


def call(query=None, key_pool=None, value_pool=None, **options):
    case = build([Node(None, 5)], [Row(0, 2, 3)], heads=4, kv_heads=2)
    given = [query, key_pool, value_pool]
    tensors = [a if b is None else b for a, b in zip((case.query, case.key_pool, case.value_pool), given)]
    return paged_attention(*tensors, case.table, case.work(), **(case.options | options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(3, 64)}, r"query \[tokens, heads, key_dim\].* not \(3, 64\)"),
        ({"query": torch.zeros(3, 4, 32)}, "the head dimension is 32 in the query, 16 in the keys"),
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


LAUNCHERS = {
    "paged_attention": call,
    "rms_norm": lambda: norm.rms_norm(torch.zeros(2, 4), torch.zeros(4), 1e-5),
    "rotary_and_write": lambda: rotary.rotary_and_write(*[torch.zeros(1, 1, 2)] * 3, *[torch.zeros(1, 1)] * 6),
    "write_kv": lambda: kv_write.write_kv(*[torch.zeros(1, 1, 2)] * 4, torch.zeros(1)),
    "silu_and_mul": lambda: activation.silu_and_mul(torch.zeros(1, 2)),
    "gelu_and_mul": lambda: activation.gelu_and_mul(torch.zeros(1, 2)),
    "gathered_log_softmax": lambda: log_probs.gathered_log_softmax(torch.zeros(1, 2), *[torch.zeros(1)] * 3),
    "merge_parts": lambda: merge.merge_parts(*[torch.zeros(1, 1, 2)] * 2, *[torch.zeros(1)] * 3),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_says_that_triton_is_needed(name, monkeypatch):
    monkeypatch.setattr(language, "triton", None)
    with pytest.raises(ModuleNotFoundError, match=f"{name} needs triton, which is not installed"):
        LAUNCHERS[name]()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_refuses_cpu_tensors(name):
    pytest.importorskip("triton", reason="triton is not installed")
    with pytest.raises(RuntimeError, match=f"{name} runs on CUDA tensors, these are on cpu"):
        LAUNCHERS[name]()


def test_without_triton_the_references_work():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from llmsql.kernels import activation, attention, kv_write, log_probs, merge, norm, rotary\n"
        "from llmsql.kernels import paged_attention_reference\n"
        "x = torch.ones(2, 4)\n"
        "assert norm.rms_norm_reference(x, x[0], 0.0)[0].equal(x)\n"
        "try:\n"
        "    norm.rms_norm(x, x[0], 0.0)\n"
        "except ModuleNotFoundError as error:\n"
        "    assert 'rms_norm needs triton' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
