"""The cascade over random trees against attention spelled out query by query."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_batches import BLOCK_SIZE, NUM_BLOCKS, plain_attention, random_batch, random_cache, random_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend import cascade, own_keys, tiles
from llmsql.gpu_backend.batch import StepBatch
from llmsql.gpu_backend.kv_cache import LayerShape
from llmsql.gpu_backend.step_attention import StepAttention
from llmsql.kernels import NodeTable

CPU = torch.device("cpu")
COSTS = {
    "as measured": {},
    "share all": {"PRODUCT_NS": 0, "BLOCK_NS": 0, "MERGE_NS": 0},
    "share what pays at this size": {"PRODUCT_NS": 300, "BLOCK_NS": 20, "MERGE_NS": 0.1, "READ_NS": 0.5},
    "copy nothing": {"PRODUCT_NS": 50, "BLOCK_NS": 0, "GATHER_NS": 50},
}


@pytest.fixture(params=[(128, 8_000), (3, 0), (7, 10**9)], ids=["tiles", "small tiles", "padded tiles"])
def _tile_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_keys, "TILE_QUERIES", request.param[0])
    monkeypatch.setattr(cascade, "TILE_QUERIES", request.param[0])
    monkeypatch.setattr(tiles, "PADDING", request.param[1])


def attend(batch: StepBatch, cache, query, *, on: bool = True, window=None, softcap=None, previous=None):
    attention = StepAttention(batch, cache, cascade=on, device=CPU, previous=previous)
    return attention.attend(0, query, scale=0.4, window=window, softcap=softcap), attention


@pytest.mark.usefixtures("_tile_limits")
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_prompts=st.integers(1, 14),
    max_tokens=st.integers(1, 120),
    window=st.sampled_from([None, 1, 3, 10, 17]),
    softcap=st.sampled_from([None, 2.0]),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    value_dim=st.sampled_from([8, 4]),
    costs=st.sampled_from(list(COSTS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_cascade_equals_plain_attention(
    seed: int,
    num_prompts: int,
    max_tokens: int,
    window: int | None,
    softcap: float | None,
    heads: tuple[int, int],
    value_dim: int,
    costs: str,
    dtype: torch.dtype,
) -> None:
    batch = random_batch(seed, num_prompts, max_tokens)
    cache = random_cache(LayerShape(heads[1], 8, value_dim), dtype, seed)
    query = (torch.randn(len(batch.token_ids), heads[0], 8) * 3).to(dtype)
    expected = plain_attention(batch, query, cache, 0.4, window, softcap)
    tolerance = 2e-5 if dtype == torch.float32 else 0.04
    with pytest.MonkeyPatch.context() as patch:
        for name, value in COSTS[costs].items():
            patch.setattr(cascade, name, value)
        for on in (True, False):
            out, _ = attend(batch, cache, query, on=on, window=window, softcap=softcap)
            assert out.dtype == dtype
            assert torch.allclose(out.double(), expected, atol=tolerance), f"cascade={on}"


@pytest.mark.parametrize("window", [None, 9])
def test_the_attention_of_the_step_before_changes_nothing(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    monkeypatch.setattr(cascade, "PRODUCT_NS", 0)
    monkeypatch.setattr(cascade, "BLOCK_NS", 0)
    kept = 0
    for seed in range(12):
        cache = random_cache(LayerShape(2, 8, 8), torch.float32, seed)
        previous = None
        for batch in random_steps(seed, 8, 60, 14):
            query = torch.randn(len(batch.token_ids), 4, 8)
            fresh, _ = attend(batch, cache, query, window=window)
            shared = previous._planner._shared if previous is not None else None
            continued, previous = attend(batch, cache, query, window=window, previous=previous)
            assert torch.equal(fresh, continued)
            kept += previous._planner._shared is shared
    assert kept > 30, "decode steps use what the step before has planned"


def test_a_row_is_not_changed_by_the_rows_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "PRODUCT_NS", 0)
    monkeypatch.setattr(cascade, "BLOCK_NS", 0)
    for seed in range(12):
        batch = random_batch(seed, 12, 100)
        cache = random_cache(LayerShape(2, 8, 8), torch.float32, seed)
        query = torch.randn(len(batch.token_ids), 4, 8)
        together, _ = attend(batch, cache, query)
        table = batch.table
        for row in range(len(table.query_position)):
            span = slice(int(table.query_start[row]), int(table.query_start[row + 1]))
            path = table.path_nodes[table.path_start[row] : table.path_start[row + 1]]
            alone = replace(
                table,
                path_start=np.array([0, len(path)], np.int32),
                path_nodes=path,
                query_start=np.array([0, span.stop - span.start], np.int32),
                query_position=table.query_position[row : row + 1],
            )
            out, _ = attend(replace(batch, table=alone), cache, query[span])
            assert torch.allclose(out, together[span], atol=1e-5)


def test_keys_that_hold_no_number_stay_with_their_row() -> None:
    for seed in range(10):
        batch = random_batch(seed, 8, 60)
        cache = random_cache(LayerShape(2, 8, 8), torch.float32, seed)
        seen = np.unique(batch.table.blocks)
        bad = np.setdiff1d(np.arange(NUM_BLOCKS), seen)
        slots = (bad[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
        cache.keys[0][slots] = float("nan")  # left by a request that has failed
        cache.values[0][slots] = float("nan")
        for on in (True, False):
            out, _ = attend(batch, cache, torch.randn(len(batch.token_ids), 4, 8), on=on)
            assert not out.isnan().any()


def test_the_batch_satisfies_the_contract_with_the_kernels() -> None:
    for seed in range(20):
        batch = random_batch(seed, 8, 50)
        table = NodeTable(**{name: torch.from_numpy(array) for name, array in vars(batch.table).items()})
        table.check(BLOCK_SIZE, num_blocks=NUM_BLOCKS, num_tokens=len(batch.token_ids))
        assert len(set(batch.slots.tolist())) == len(batch.slots)
