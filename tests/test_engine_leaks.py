"""Ten thousand random requests with cancellations, on a model that answers at once: nothing is left behind."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import numpy as np
import torch
from engine_models import EOS, VOCAB, tiny_model

from llmsql.gpu_backend import Completion, Engine, Request
from llmsql.gpu_backend.batch import StepBatch

NUM_REQUESTS = 10_000


def random_requests(rng: np.random.Generator, count: int) -> Iterator[Request]:
    """Prompts in a tree, with equal ones and beginnings of others; some are invalid, some can never fit."""
    root = rng.integers(8, VOCAB, 40)
    for row in range(count):
        prompt = np.concatenate([root[: rng.integers(0, 40)], rng.integers(8, 10, rng.integers(0, 8)), [8]])
        kind = rng.random()
        if kind < 0.02:
            yield Request(row, [VOCAB + 5])
        elif kind < 0.03:
            yield Request(row, rng.integers(8, VOCAB, 200), max_tokens=50)
        elif kind < 0.3:
            yield Request(row, prompt, choices=[[3, 4], [3, 5], [6]] if kind < 0.2 else [[3], [4]])
        else:
            yield Request(row, prompt, max_tokens=int(rng.integers(1, 20)), temperature=float(kind > 0.9), seed=row)


def test_ten_thousand_requests_leak_nothing() -> None:
    rng = np.random.default_rng(0)
    threads, processes = threading.active_count(), len(multiprocessing.active_children())
    with Engine(tiny_model()) as probe:
        token_bytes = probe._runner.kv_bytes_per_token
    with Engine(tiny_model(), window=128, max_batch_tokens=256, block_size=4, kv_memory=200 * token_bytes) as engine:
        logits = torch.randn(256, VOCAB, generator=torch.Generator().manual_seed(0))
        logits[:, EOS] += 2

        def forward(batch: StepBatch) -> torch.Tensor:
            return logits[: len(batch.logit_index)].clone()

        engine._runner.forward = forward  # type: ignore[method-assign]
        streams: list[tuple[Iterator[Completion], int]] = []
        given = 0
        while given < NUM_REQUESTS or streams:
            if given < NUM_REQUESTS and len(streams) < 3:
                count = int(rng.integers(1, 1000))
                given += count
                ends_after = count if rng.random() < 0.6 else int(rng.integers(0, count))
                streams.append((engine.generate(random_requests(rng, count)), ends_after))
            which = int(rng.integers(len(streams)))
            results, left = streams[which]
            for _ in range(min(left, int(rng.integers(1, 200)))):
                answer = next(results)
                assert (
                    answer.error is None
                    or "outside the model's vocabulary" in answer.error
                    or "KV blocks" in answer.error
                )
                left -= 1
            streams[which] = (results, left)
            if left == 0:
                if rng.random() < 0.5:
                    results.close()  # type: ignore[attr-defined]
                del streams[which], results
                engine.check()
        assert engine._scheduler.num_running + engine._scheduler.num_waiting == 0
        assert engine._scheduler.tree.num_pinned_blocks == engine._scheduler.admission.promised == 0
        assert not engine._streams
        engine.clear_cache()
        assert engine._pool.num_used == 0
        assert not list(engine._scheduler.tree.depth_first())
    assert (threading.active_count(), len(multiprocessing.active_children())) == (threads, processes)
