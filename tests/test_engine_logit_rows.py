"""A batch cut down to the tokens that are read attends like the whole batch does at those tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_batches import NUM_SLOTS, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend import cascade
from llmsql.gpu_backend.batch import StepBatch
from llmsql.gpu_backend.kv_cache import KVCache, LayerShape
from llmsql.gpu_backend.logit_rows import logit_rows
from llmsql.gpu_backend.step_attention import StepAttention


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_prompts=st.integers(1, 12), window=st.sampled_from([None, 5]))
def test_attention_of_the_read_rows(seed: int, num_prompts: int, window: int | None) -> None:
    batch = random_batch(seed, num_prompts, 200)
    rng = np.random.default_rng(seed)
    ends, lengths = batch.table.query_start[1:], np.diff(batch.table.query_start)
    read = [np.arange(end - rng.integers(0, length + 1), end) for end, length in zip(ends, lengths)]  # of each row
    batch = replace(batch, logit_index=np.concatenate(read))
    if len(batch.logit_index) == 0:
        return
    cut = logit_rows(batch)
    assert np.array_equal(cut.positions, batch.positions[batch.logit_index])
    torch.manual_seed(seed)
    cpu = torch.device("cpu")
    cache = KVCache([LayerShape(2, 8, 8)], NUM_SLOTS, dtype=torch.float32, device=cpu)
    cache.keys[0].normal_()
    cache.values[0].normal_()
    query = torch.randn(len(batch.token_ids), 4, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "PRODUCT_NS", 0)
        patch.setattr(cascade, "BLOCK_NS", 0)

        def attend(rows: StepBatch, queries: torch.Tensor) -> torch.Tensor:
            attention = StepAttention(rows, cache, cascade=True, device=cpu)
            return attention.attend(0, queries, scale=0.5, window=window, softcap=None)

        expected = attend(batch, query)[batch.logit_index]
        torch.testing.assert_close(attend(cut, query[batch.logit_index]), expected, atol=1e-5, rtol=1e-5)
