"""The memory that a process really takes, on a batch fifty times larger than the KV pool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as T

BUDGET = 64 * 2**20
PROGRAM = """
import gc, json, resource, sys
from pathlib import Path
import numpy as np, torch
from llmsql.gpu_backend import Engine, Request

def requests(count):
    shared = rng.integers(8, 200, 16)
    for row in range(count):
        yield Request(row, np.concatenate([shared, rng.integers(8, 200, 32)]), max_tokens=1 + 3 * (row % 10 == 0))

def run(count, kv_memory):
    with Engine(sys.argv[1], kv_memory=kv_memory, max_batch_tokens=32) as engine:
        pool = engine.memory.num_blocks * engine.block_size
        failed = sum(answer.error is not None for answer in engine.generate(requests(count or 50 * pool // 30)))
        engine.check()
        prompts = engine.stats.computed_tokens
    return {"failed": failed, "weights": engine.memory.weights, "prompts": prompts, "pool": pool}

torch.set_num_threads(1)
rng = np.random.default_rng(0)
run(30, "8MiB")  # what is imported, compiled and cached once is no part of what is measured
gc.collect()
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
found = run(None, int(sys.argv[2]))
# not getrusage: its peak begins with the memory of the process that started this one
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
found["taken"] = peak * 1024 - before
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak as Linux counts it")
def test_peak_memory_is_budget_and_weights_and_little_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T.LlamaConfig(  # a small model with a large KV, so that the batch need not be long
        vocab_size=200,
        hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=256,
        max_position_embeddings=256,
    )
    T.LlamaForCausalLM(config).save_pretrained(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(BUDGET)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert found["failed"] == 0
    assert found["prompts"] >= 50 * found["pool"]
    assert 0.9 * BUDGET <= found["taken"] <= 1.2 * (BUDGET + found["weights"]), found
