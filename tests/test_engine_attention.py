"""The cascade over random trees against attention spelled out query by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsql.gpu_backend import cascade
from llmsql.gpu_backend.attention import StepAttention
from llmsql.gpu_backend.batch import StepBatch, build_batch
from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.kv_cache import KVCache, LayerShape
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.tree import PrefixTree
from llmsql.kernels import NodeTable

BLOCK_SIZE, NUM_BLOCKS = 3, 400


def random_batch(seed: int, num_prompts: int, max_tokens: int) -> StepBatch:
    """A step in the middle of a random batch: decode rows, chunks of shared nodes, and private tails."""
    rng = np.random.default_rng(seed)
    tree = PrefixTree(BlockPool(NUM_BLOCKS, BLOCK_SIZE))
    scheduler = Scheduler(tree, max_tokens=max_tokens, max_logits=100, max_running=100)
    for _ in range(num_prompts):
        prompt = rng.integers(0, 2, rng.integers(1, 8)).repeat(rng.integers(1, 6))
        scheduler.add(Sequence(prompt.astype(np.int32), max_tokens=4))
    for _ in range(rng.integers(0, 5)):
        step = scheduler.schedule()
        if step is None or not step.chunks:
            break
        scheduler.commit(step)
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                if sequence.num_generated == 3:
                    scheduler.remove(sequence)
                else:
                    scheduler.append(sequence, 9)
    step = scheduler.schedule()
    if step is None or not step.chunks:
        return random_batch(seed + 1000, num_prompts, max_tokens)
    return build_batch(step, BLOCK_SIZE)


def plain_attention(
    batch: StepBatch, query: torch.Tensor, cache: KVCache, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    table = batch.table
    group = query.shape[1] // cache.keys[0].shape[1]
    rows = []
    for row in range(len(table.query_position)):
        slots = []
        for node in table.path_nodes[table.path_start[row] : table.path_start[row + 1]]:
            blocks = table.blocks[table.node_block_start[node] : table.node_block_start[node + 1]]
            for place in range(table.node_offset[node], table.node_offset[node] + table.node_len[node]):
                slots.append(int(blocks[place // BLOCK_SIZE]) * BLOCK_SIZE + place % BLOCK_SIZE)
        for index in range(table.query_start[row], table.query_start[row + 1]):
            position = int(table.query_position[row] + index - table.query_start[row])
            first = 0 if window is None else max(0, position - window + 1)
            seen = slots[first : position + 1]
            keys = cache.keys[0][seen].repeat_interleave(group, dim=1).double()
            values = cache.values[0][seen].repeat_interleave(group, dim=1).double()
            scores = torch.einsum("hd,khd->hk", query[index].double(), keys) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
    return torch.stack(rows)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_prompts=st.integers(1, 12),
    max_tokens=st.integers(1, 120),
    window=st.sampled_from([None, 1, 3, 10, 17]),
    softcap=st.sampled_from([None, 2.0]),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    value_dim=st.sampled_from([8, 4]),
    limits=st.sampled_from([(1, 4, 0), (5, 3, 10), (40, 128, 8000), (10_000, 7, 10**9)]),
)
def test_cascade_equals_plain_attention(
    seed: int,
    num_prompts: int,
    max_tokens: int,
    window: int | None,
    softcap: float | None,
    heads: tuple[int, int],
    value_dim: int,
    limits: tuple[int, int, int],
) -> None:
    batch = random_batch(seed, num_prompts, max_tokens)
    torch.manual_seed(seed)
    cpu = torch.device("cpu")
    shape = LayerShape(heads[1], 8, value_dim)
    cache = KVCache([shape], NUM_BLOCKS * BLOCK_SIZE, dtype=torch.float32, device=cpu)
    cache.keys[0].normal_()
    cache.values[0].normal_()
    query = torch.randn(len(batch.token_ids), heads[0], 8) * 3
    expected = plain_attention(batch, query, cache, 0.4, window, softcap)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(["MIN_SHARED_KEYS", "TILE_QUERIES", "PRODUCT_COST"], limits):
            patch.setattr(cascade, name, value)
        for on in (True, False):
            attention = StepAttention(batch, cache, cascade=on, device=cpu)
            out = attention.attend(0, query, scale=0.4, window=window, softcap=softcap)
            assert torch.allclose(out.double(), expected, atol=2e-5), f"cascade={on}"


def test_a_shared_prefix_is_one_product_and_every_query_is_private_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "MIN_SHARED_KEYS", 4)
    tree = PrefixTree(BlockPool(NUM_BLOCKS, BLOCK_SIZE))
    scheduler = Scheduler(tree, max_tokens=1000, max_logits=100, max_running=100)
    for row in range(6):
        scheduler.add(Sequence(np.array([1] * 20 + [row // 3] * 10 + [100 + row] * 4, np.int32), max_tokens=4))
    step = scheduler.schedule()
    assert step is not None
    batch = build_batch(step, BLOCK_SIZE)
    plan = cascade.Planner(batch.table, BLOCK_SIZE).plan()
    assert sorted(len(part.slots) for part in plan.shared) == [10, 10, 20]
    queries = np.concatenate([np.unique(row) for part in plan.private for row in part.queries])
    assert sorted(queries.tolist()) == list(range(20 + 2 * 10 + 6 * 4))
    assert cascade.Planner(batch.table, BLOCK_SIZE, cascade=False).plan().shared == []


def test_the_batch_satisfies_the_contract_with_the_kernels() -> None:
    for seed in range(20):
        batch = random_batch(seed, 8, 50)
        table = NodeTable(**{name: torch.from_numpy(array) for name, array in vars(batch.table).items()})
        table.check(BLOCK_SIZE, num_blocks=NUM_BLOCKS, num_tokens=len(batch.token_ids))
        assert len(set(batch.slots.tolist())) == len(batch.slots)
