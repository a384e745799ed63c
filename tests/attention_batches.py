"""Steps in the middle of random batches, and attention spelled out query by query, for tests of attention."""

from __future__ import annotations

import numpy as np
import torch

from llmsql.gpu_backend.batch import StepBatch, TableArrays, build_batch
from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.kv_cache import KVCache, LayerShape
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.tree import PrefixTree

BLOCK_SIZE, NUM_BLOCKS = 3, 400
NUM_SLOTS = BLOCK_SIZE * NUM_BLOCKS


def random_steps(seed: int, num_prompts: int, max_tokens: int, num_steps: int) -> list[StepBatch]:
    """The first steps of a random batch: decode rows, chunks of shared nodes, and rows that come and go."""
    rng = np.random.default_rng(seed)
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    if rng.random() < 0.5:  # scattered blocks, as after much use
        taken = pool.allocate(NUM_BLOCKS)
        for block in rng.permutation(taken).tolist():
            pool.release(block)
    scheduler = Scheduler(PrefixTree(pool), max_tokens=max_tokens, max_logits=100, max_running=100)
    for _ in range(num_prompts):
        prompt = rng.integers(0, 2, rng.integers(1, 8)).repeat(rng.integers(1, 6))
        scheduler.add(Sequence(prompt.astype(np.int32), max_tokens=8))
    batches = []
    while len(batches) < num_steps:
        step = scheduler.schedule()
        if step is None or not step.chunks:
            break
        batches.append(build_batch(step, BLOCK_SIZE))
        scheduler.commit(step)
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                if sequence.num_generated == 7 or rng.random() < 0.02:
                    scheduler.remove(sequence)
                else:
                    scheduler.append(sequence, 9)
    return batches


def random_batch(seed: int, num_prompts: int, max_tokens: int) -> StepBatch:
    """A step somewhere in a random batch."""
    steps = random_steps(seed, num_prompts, max_tokens, 1 + seed % 6)
    return steps[-1]


def random_cache(shape: LayerShape, dtype: torch.dtype, seed: int) -> KVCache:
    """One layer of random keys and values."""
    torch.manual_seed(seed)
    cache = KVCache([shape], NUM_SLOTS, dtype=dtype, device=torch.device("cpu"))
    cache.keys[0].normal_()
    cache.values[0].normal_()
    return cache


def visible_slots(table: TableArrays, window: int | None) -> list[list[int]]:
    """The slots that each query token sees, in the order of positions."""
    visible = []
    for row in range(len(table.query_position)):
        slots: list[int] = []
        for node in table.path_nodes[table.path_start[row] : table.path_start[row + 1]]:
            blocks = table.blocks[table.node_block_start[node] : table.node_block_start[node + 1]]
            for place in range(table.node_offset[node], table.node_offset[node] + table.node_len[node]):
                slots.append(int(blocks[place // BLOCK_SIZE]) * BLOCK_SIZE + place % BLOCK_SIZE)
        for index in range(table.query_start[row], table.query_start[row + 1]):
            position = int(table.query_position[row] + index - table.query_start[row])
            visible.append(slots[0 if window is None else max(0, position - window + 1) : position + 1])
    return visible


def plain_attention(
    batch: StepBatch, query: torch.Tensor, cache: KVCache, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """Attention of [tokens, heads, key_dim] in double precision, [tokens, heads, value_dim]."""
    group = query.shape[1] // cache.keys[0].shape[1]
    rows = []
    for index, slots in enumerate(visible_slots(batch.table, window)):
        keys = cache.keys[0][slots].repeat_interleave(group, dim=1).double()
        values = cache.values[0][slots].repeat_interleave(group, dim=1).double()
        scores = torch.einsum("hd,khd->hk", query[index].double(), keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
    return torch.stack(rows)
