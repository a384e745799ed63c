"""Checks the paged attention kernel on this machine's GPU and measures it against a plain copy of memory.

    python benchmarks/gpu.py             # needs CUDA and triton; prints a Markdown table
    python benchmarks/gpu.py --dry-run   # the same steps on the CPU, tiny, the torch reference in the kernel's place

Columns: `error` is the largest difference to the torch reference in fp32, on the last tokens of three rows. `read`
counts the keys and values on every row's path once per row (the kernel takes shared ones from memory or from the L2
cache); `distinct` counts each slot once, which is the least that must come from memory. Both are divided by the time
and given as a fraction of the bandwidth that a large copy reached on the same device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from llmsql.kernels import NodeTable, paged_attention, paged_attention_reference

BLOCK_SIZE = 16
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Workload:
    """Rows below one shared root; each has tokens of its own, of which the last `queries` are asked for."""

    name: str
    prefix: int  # tokens of the root
    rows: list[tuple[int, int]]  # own tokens and query tokens of each row


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int


def workloads(dry_run: bool) -> tuple[Shape, list[Workload]]:
    if dry_run:
        return Shape(4, 2, 32), [Workload("decode", 20, [(5, 1)] * 4), Workload("mixed", 9, [(18, 18), (3, 1), (7, 2)])]
    return Shape(32, 8, 128), [
        Workload("decode, nothing shared", 0, [(1024, 1)] * 256),
        Workload("decode, 2048 shared", 2048, [(128, 1)] * 256),
        Workload("prefill after 512 shared", 512, [(1024, 1024)] * 16),
        Workload("prefill of short rows after 512 shared", 512, [(48, 48)] * 256),
        Workload("mixed", 512, [(64, 1)] * 128 + [(512, 512)] * 8),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Check and measure the paged attention kernel on CUDA.")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, with the torch reference")
    dry_run = parser.parse_args(arguments).dry_run
    if not dry_run and not torch.cuda.is_available():
        raise SystemExit("No CUDA device: nothing was measured. --dry-run runs the same steps on the CPU.")
    device = torch.device("cpu" if dry_run else "cuda")
    attention = paged_attention_reference if dry_run else paged_attention
    shape, cases = workloads(dry_run)

    copy = copy_bandwidth(device)
    print(f"Device: {'CPU, dry run: the reference itself' if dry_run else torch.cuda.get_device_name(device)}")
    print(f"torch {torch.__version__}, {shape}, blocks of {BLOCK_SIZE}, copy {copy / 1e9:.0f} GB/s (read + write)\n")
    print("| workload | rows | tokens | type | error | ms | read / copy | distinct / copy | TFLOP/s |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    failed = []
    for work in cases:
        for dtype in (torch.float16, torch.bfloat16):
            query, keys, values, table = make_batch(work, shape, dtype, device)
            options = {"block_size": BLOCK_SIZE, "scale": shape.head_dim**-0.5}
            on_device = table.to(device)
            call = lambda: attention(query, keys, values, on_device, **options)  # noqa: B023, E731
            error = sampled_error(call(), query, keys, values, table, options)
            seconds = median_seconds(call, device)
            read, distinct = (count / seconds / copy for count in kv_bytes(work, shape, dtype))
            type_name = str(dtype).split(".")[1]
            print(
                f"| {work.name} | {len(work.rows)} | {query.shape[0]} | {type_name} | {error:.1e} "
                f"| {seconds * 1e3:.3f} | {read:.2f} | {distinct:.2f} | {flops(work, shape) / seconds / 1e12:.1f} |"
            )
            if not error <= TOLERANCE[dtype]:  # also true for NaN
                failed.append(f"{work.name} in {type_name}: error {error:.1e}, allowed {TOLERANCE[dtype]:.0e}")
    if failed:
        raise SystemExit("The kernel is wrong on this device:\n" + "\n".join(failed))


def make_batch(
    work: Workload, shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NodeTable]:
    """Random query, key pool and value pool on `device`, and the node table on the CPU; blocks are in random order."""
    generator = torch.Generator().manual_seed(0)
    lengths = [work.prefix, *[own for own, _ in work.rows]]
    block_counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = torch.randperm(sum(block_counts), generator=generator)
    queries = [count for _, count in work.rows]
    table = NodeTable(
        node_block_start=_int32([0, *accumulate(block_counts)]),
        blocks=blocks.int(),
        node_offset=_int32([0] * len(lengths)),
        node_len=_int32(lengths),
        node_position=_int32([0] + [work.prefix] * len(work.rows)),
        path_start=_int32(range(0, 2 * len(work.rows) + 1, 2)),
        path_nodes=_int32([node for row in range(len(work.rows)) for node in (0, row + 1)]),
        query_start=_int32([0, *accumulate(queries)]),
        query_position=_int32([work.prefix + own - count for own, count in work.rows]),
    )
    table.check(BLOCK_SIZE, num_blocks=len(blocks), num_tokens=sum(queries))
    on_device = torch.Generator(device).manual_seed(0)
    slots = len(blocks) * BLOCK_SIZE
    query, keys, values = (
        torch.randn(count, heads, shape.head_dim, generator=on_device, device=device, dtype=dtype)
        for count, heads in ((sum(queries), shape.heads), (slots, shape.kv_heads), (slots, shape.kv_heads))
    )
    return query, keys, values, table


def sampled_error(
    out: torch.Tensor,  # [tokens, heads, head_dim]
    query: torch.Tensor,  # [tokens, heads, head_dim]
    keys: torch.Tensor,  # [slots, kv_heads, head_dim]
    values: torch.Tensor,
    table: NodeTable,
    options: dict,
) -> float:
    """Largest difference to the reference in fp32, on up to four last tokens of the first, middle and last row."""
    starts, paths = table.query_start.tolist(), table.path_start.tolist()
    worst = 0.0
    for row in sorted({0, table.num_rows // 2, table.num_rows - 1}):
        begin = max(starts[row], starts[row + 1] - 4)
        tokens = slice(begin, starts[row + 1])
        one_row = replace(
            table,
            path_start=_int32([0, paths[row + 1] - paths[row]]),
            path_nodes=table.path_nodes[paths[row] : paths[row + 1]],
            query_start=_int32([0, starts[row + 1] - begin]),
            query_position=table.query_position[row : row + 1] + (begin - starts[row]),
        )
        expected = paged_attention_reference(query[tokens].float(), keys, values, one_row, **options)
        worst = max(worst, (out[tokens].float() - expected).abs().max().item(), key=lambda e: (e != e, e))
    return worst


def kv_bytes(work: Workload, shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of keys and values that the rows read, and bytes of distinct ones."""
    token = 2 * shape.kv_heads * shape.head_dim * dtype.itemsize
    own = sum(own for own, _ in work.rows)
    return token * (own + work.prefix * len(work.rows)), token * (own + work.prefix)


def flops(work: Workload, shape: Shape) -> int:
    """Floating-point operations of both matrix products over visible pairs of query and key."""
    pairs = sum(count * (work.prefix + own) - count * (count - 1) // 2 for own, count in work.rows)
    return 4 * shape.heads * shape.head_dim * pairs


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of one large copy on `device`."""
    source = torch.zeros(1 << (29 if device.type == "cuda" else 22), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), device)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of one call: 20 timed by events on CUDA after 5 to warm up, 3 by the clock elsewhere."""
    if device.type != "cuda":
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    for _ in range(5):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(20)]
    for begin_event, end_event in events:
        begin_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def _int32(values) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


if __name__ == "__main__":
    main()
