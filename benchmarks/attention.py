"""The CPU's attention alone: when reading a prefix once for all rows begins to pay, measured and by the cost test.

    python benchmarks/attention.py                     # about four minutes
    python benchmarks/attention.py --kernels native    # the C++ kernels instead of torch's operators
    python benchmarks/attention.py --quick             # the same steps, few

Decode steps of rows that share so many tokens and have 24 of their own, by the head shapes of four sizes of model.
"alone" is with every row reading all keys by itself, "shared" with the prefix read once: CPU microseconds of one thread
for one layer, layer after layer as a model goes through them. The last lines have the constants of
gpu_backend/cascade.py or attention_kernels.py that fit these times best.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from llmsql.gpu_backend.attention_kernels import attention_kernels, native_costs
from llmsql.gpu_backend.batch import StepBatch, build_batch
from llmsql.gpu_backend.blocks import BlockPool
from llmsql.gpu_backend.cascade import Costs, cpu_costs, shared_groups
from llmsql.gpu_backend.kernel_attention import KernelAttention
from llmsql.gpu_backend.kv_cache import KVCache, LayerShape, slots_first
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.sequence import Sequence
from llmsql.gpu_backend.step_attention import StepAttention
from llmsql.gpu_backend.tree import PrefixTree

SHAPES = {"23 M": (8, 2, 64), "135 M": (9, 3, 64), "0.5 B": (14, 2, 64), "8 B": (32, 8, 128)}  # heads, KV heads, dim
LAYERS = 6
OWN, BLOCK_SIZE = 24, 16


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.25, help="CPU time for each pair of measurements")
    parser.add_argument("--kernels", choices=("torch", "native"), default="torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    native = options.kernels == "native"
    models = ["23 M"] if options.quick else list(SHAPES)
    all_rows = (2, 8) if options.quick else (2, 4, 8, 16, 64)
    all_keys = (16, 64) if options.quick else (8, 16, 32, 64, 128, 256, 512)
    print("| heads of | dtype | rows | shared tokens: alone / shared | pays from | cost test |")
    print("| --- | --- | ---: | --- | ---: | ---: |")
    observed: dict[torch.dtype, list[tuple[list[float], float]]] = {}
    for model in models:
        for dtype in (torch.float32, torch.bfloat16):
            for rows in all_rows:
                cells, pays, predicted = [], "never", "never"
                for keys in reversed(all_keys):
                    alone, shared = measure(SHAPES[model], dtype, rows, keys, options.seconds, native)
                    cells.insert(0, f"{keys}: {alone:.0f} / {shared:.0f}")
                    pays = str(keys) if alone > shared else pays
                    predicted = str(keys) if chosen(SHAPES[model], dtype, rows, keys, native) else predicted
                    observed.setdefault(dtype, []).append(
                        (terms(SHAPES[model], dtype, rows, keys, native), 1000 * (alone - shared))
                    )
                print(
                    f"| {model} | {str(dtype)[6:]} | {rows} | {', '.join(cells)} | {pays} | {predicted} |", flush=True
                )
    fitted = {f"{str(dtype)[6:]}: ": pairs for dtype, pairs in observed.items()}
    if not native:  # one set of constants for both types
        fitted = {"": [pair for pairs in observed.values() for pair in pairs]}
    print()
    for name, pairs in fitted.items():
        print(name + ", ".join(f"{constant} {value:.3g}" for constant, value in fit(pairs).items()))


def decode_step(rows: int, keys: int) -> StepBatch:
    """A step in which every row decodes one token, with its blocks as the engine lays them out."""
    rng = np.random.default_rng(0)
    pool = BlockPool(rows * 4 + keys // BLOCK_SIZE + 8, BLOCK_SIZE)
    scheduler = Scheduler(PrefixTree(pool), max_tokens=100_000, max_logits=4096, max_running=4096)
    prefix = rng.integers(1000, 2000, keys)
    for row in range(rows):
        prompt = np.concatenate([prefix, [row], rng.integers(1000, 2000, OWN - 2)])
        scheduler.add(Sequence(prompt.astype(np.int32), max_tokens=8))
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(step)
    for chunk in step.chunks:
        for sequence in chunk.sequences:
            scheduler.append(sequence, 9)
    step = scheduler.schedule()
    assert step is not None
    return build_batch(step, BLOCK_SIZE)


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, rows: int, keys: int, seconds: float, native: bool
) -> tuple[float, float]:
    """Microseconds of one layer, every row reading by itself and with the prefix read once."""
    heads, kv_heads, dim = shape
    batch = decode_step(rows, keys)
    num_slots = (int(batch.table.blocks.max()) + 1) * BLOCK_SIZE
    cpu = torch.device("cpu")
    pool_shapes = attention_kernels("native").pool_shapes if native else slots_first
    shapes = [LayerShape(kv_heads, dim, dim)] * LAYERS
    cache = KVCache(shapes, num_slots, dtype=dtype, device=cpu, pool_shapes=pool_shapes)
    for pool in [*cache.keys, *cache.values]:
        pool.normal_()
    query = torch.randn(rows, heads, dim, dtype=dtype)
    runs: list[Callable[[], None]] = []
    always = Costs(product=0, block=0, merge=0, read=1, gather=cost_of(shape, dtype, native).gather)
    for cascade in (False, True):
        attention: KernelAttention | StepAttention
        if native:
            kernels = replace(attention_kernels("native"), costs=lambda **shape: always)
            attention = KernelAttention(batch, cache, kernels, cascade=cascade, device=cpu)
        else:
            attention = StepAttention(batch, cache, cascade=cascade, device=cpu, costs=always)

        def run(attention: KernelAttention | StepAttention = attention) -> None:
            for layer in range(LAYERS):
                attention.attend(layer, query, scale=dim**-0.5, window=None, softcap=None)

        run()
        runs.append(run)
    best = [float("inf"), float("inf")]
    until = time.process_time() + seconds
    while time.process_time() < until:  # in turns, so that a busy machine treats both alike
        for index, run in enumerate(runs):
            started = time.process_time()
            run()
            run()
            best[index] = min(best[index], (time.process_time() - started) / 2 / LAYERS * 1e6)
    return best[0], best[1]


def cost_of(shape: tuple[int, int, int], dtype: torch.dtype, native: bool) -> Costs:
    heads, kv_heads, dim = shape
    costs = native_costs if native else cpu_costs
    return costs(heads=heads, kv_heads=kv_heads, key_dim=dim, value_dim=dim, itemsize=dtype.itemsize)


def chosen(shape: tuple[int, int, int], dtype: torch.dtype, rows: int, keys: int, native: bool) -> bool:
    """Whether the cost test lets the prefix be read once."""
    return bool(shared_groups(decode_step(rows, keys).table, cost_of(shape, dtype, native)))


def terms(shape: tuple[int, int, int], dtype: torch.dtype, rows: int, keys: int, native: bool) -> list[float]:
    """What the constants are multiplied with in the saving: READ_NS, PRODUCT_NS, BLOCK_NS, MERGE_NS."""
    heads, kv_heads, dim = shape
    numbers = (rows - 1) * keys * kv_heads * 2 * dim
    return [numbers if native else numbers * dtype.itemsize, 0 if native else -1, -kv_heads, -rows * heads * dim]


def fit(observed: list[tuple[list[float], float]]) -> dict[str, float]:
    """Least squares of relative errors; the constants cannot be negative."""
    matrix, saving = np.array([row for row, _ in observed]), np.array([value for _, value in observed])
    weight = 1 / (np.abs(saving) + 20_000)
    free, values = list(range(matrix.shape[1])), np.zeros(matrix.shape[1])
    while free:
        values[:] = 0
        values[free] = np.linalg.lstsq(matrix[:, free] * weight[:, None], saving * weight, rcond=None)[0]
        if (values >= 0).all():
            break
        free.remove(int(values.argmin()))
    return dict(zip(["READ_NS", "PRODUCT_NS", "BLOCK_NS", "MERGE_NS"], values.tolist()))


if __name__ == "__main__":
    main()
