"""Sections of gpu.py about the kernels: the device's peaks, each kernel against its reference, and their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import elementwise_cases
import numpy as np
import torch
import torch.nn.functional as F
from kernel_cases import Case, Node, Row, branching, build, dense_attention, random_case

from llmsql.gpu_backend.attention_kernels import num_processors
from llmsql.gpu_backend.attention_work import LayerTiles, plan_work
from llmsql.gpu_backend.batch import TableArrays
from llmsql.gpu_backend.cascade import Group
from llmsql.kernels import (
    NodeTable,
    gathered_log_softmax,
    paged_attention,
    rms_norm,
    rotary_and_write,
    silu_and_mul,
    write_kv,
)
from llmsql.kernels.attention_launch import tile_limits

if TYPE_CHECKING:
    from gpu import Report, Settings

HALF = (torch.float16, torch.bfloat16)
BLOCK_SIZE = 16


def measure_peaks(report: Report, settings: Settings) -> None:
    """Flops of a large bf16 matrix product and bytes of a large copy: what other sections are fractions of."""
    size = 256 if settings.dry_run else 8192
    dtype = torch.float32 if settings.dry_run else torch.bfloat16
    a, b = (torch.randn(size, size, device=settings.device, dtype=dtype) for _ in range(2))
    settings.peak_flops = 2 * size**3 / median_seconds(lambda: a @ b, settings.device)
    source = torch.zeros(1 << (20 if settings.dry_run else 29), device=settings.device)
    target = torch.empty_like(source)
    settings.peak_bytes = 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), settings.device)
    matmul, copy = settings.peak_flops / 1e12, settings.peak_bytes / 1e9
    report.line(f"\nMatrix product {matmul:.1f} TFLOP/s in {dtype}, copy {copy:.0f} GB/s (read and written)")
    report.results["peaks"] = {"flops": settings.peak_flops, "bytes": settings.peak_bytes}


def check_kernels(report: Report, settings: Settings) -> None:
    """Largest error of each kernel over the tests' cases, in fp16 and bf16; the references are fp32 or fp64."""
    report.heading("kernel | type | #cases | #largest error | #allowed")
    for dtype in HALF[:1] if settings.dry_run else HALF:
        allowed = elementwise_cases.TOLERANCE[dtype]
        worst, count = 0.0, 0
        for case in attention_cases(dtype, settings.dry_run):
            expected = dense_attention(case)
            on_device = case.to(str(settings.device))
            for cut in ({"levels": 0, "processors": 1}, {"levels": 2, "processors": 64}):
                work = case.work(**cut).to(settings.device)
                out = paged_attention(*on_device.arguments, work, **case.options).cpu().double()
                worst, count = larger(worst, (out - expected).abs().max().item()), count + 1
        report_error(report, "attention and merge", dtype, count, worst, allowed)
        for name, run in elementwise_cases.CASES.items():
            worst = 0.0
            for out, expected in run(dtype, str(settings.device)):
                error = (out.double() - expected.double()).abs() / (1.0 + expected.double().abs())
                worst = larger(worst, error.max().item() if error.numel() else 0.0)
            report_error(report, name, dtype, 1, worst, allowed)


def attention_cases(dtype: torch.dtype, dry_run: bool) -> Iterator[Case]:
    if dry_run:
        yield random_case(3, dtype=dtype)
        return
    nodes = [Node(None, 150), Node(0, 70, continues=True), Node(1, 9), Node(0, 20), Node(None, 700)]
    rows = [Row(1, 0, 220), Row(2, 228, 1), Row(1, 140, 40), Row(3, 169, 1), Row(2, 220, 1), Row(4, 699, 1)]
    for heads, kv_heads, head_dim in ((32, 8, 128), (14, 2, 64), (9, 3, 64), (4, 4, 96)):
        yield build(nodes, rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=16, dtype=dtype)
    gemma = {"heads": 8, "kv_heads": 4, "head_dim": 256, "block_size": 16}
    yield build(nodes, rows, **gemma, dtype=dtype, sliding_window=64, softcap=50.0)
    yield branching(dtype=dtype, heads=4, kv_heads=2)
    for seed in range(4):
        yield random_case(seed, dtype=dtype)


def report_error(report: Report, name: str, dtype: torch.dtype, count: int, worst: float, allowed: float) -> None:
    report.row(name, str(dtype)[6:], count, f"{worst:.1e}", f"{allowed:.0e}")
    report.results.setdefault("errors", {})[f"{name}, {dtype}"] = worst
    if not worst <= allowed:  # also true for NaN
        report.fail(f"{name} in {dtype}: error {worst:.1e}, allowed {allowed:.0e}")


def larger(a: float, b: float) -> float:
    """NaN, or the larger one."""
    return max(a, b, key=lambda error: (error != error, error))


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
        return Shape(4, 2, 16), [Workload("mixed", 20, [(18, 18), (3, 1), (7, 2)])]
    return Shape(32, 8, 128), [
        Workload("decode, nothing shared", 0, [(1024, 1)] * 256),
        Workload("decode, 512 shared", 512, [(48, 1)] * 64),
        Workload("decode, 2048 shared", 2048, [(128, 1)] * 256),
        Workload("decode of 2 long rows", 0, [(16384, 1)] * 2),
        Workload("prefill after 512 shared", 512, [(1024, 1024)] * 8),
        Workload("prefill of short rows after 512 shared", 512, [(48, 48)] * 128),
        Workload("mixed", 512, [(64, 1)] * 128 + [(512, 512)] * 8),
    ]


def time_attention(report: Report, settings: Settings) -> None:
    """Times by cascade and by split keys, on and off; `read` counts keys and values once per row, `distinct` once."""
    shape, cases = workloads(settings.dry_run)
    dtype = HALF[0] if settings.dry_run else HALF[1]
    report.line(f"\n{shape}, {dtype}, blocks of {BLOCK_SIZE}. Ratios are to the row above that has none.")
    report.heading("workload | run | #ms | #read / copy | #distinct / copy | #flops / peak | #ratio")
    for work in cases:
        batch = make_batch(work, shape, dtype, settings.device)
        base = None
        for run, cascade, split in (("rows alone", False, False), ("split keys", False, True), ("cascade", True, True)):
            if cascade and work.prefix == 0:
                continue
            seconds = time_work(batch, work, shape, settings, cascade=cascade, split=split)
            base = base or seconds
            read, distinct = (count / seconds / settings.peak_bytes for count in kv_bytes(work, shape, dtype))
            use = flops(work, shape) / seconds / settings.peak_flops
            report.row(
                work.name,
                run,
                f"{seconds * 1e3:.3f}",
                f"{read:.2f}",
                f"{distinct:.2f}",
                f"{use:.3f}",
                f"{base / seconds:.2f}",
            )
            report.results.setdefault("attention", {})[f"{work.name}, {run}"] = seconds


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, TableArrays]


def time_work(batch: Batch, work: Workload, shape: Shape, settings: Settings, *, cascade: bool, split: bool) -> float:
    query, keys, values, arrays = batch
    group = shape.heads // shape.kv_heads
    limits = tile_limits(key_dim=shape.head_dim, value_dim=shape.head_dim, group=group, dtype=query.dtype)
    groups: list[Group] = [([0], np.arange(len(work.rows)))] if cascade else []
    processors = num_processors(settings.device) if split else 0
    plan = plan_work(arrays, groups, LayerTiles(shape.kv_heads, group, limits, None), processors=processors)
    table = NodeTable(**{name: torch.from_numpy(array).to(settings.device) for name, array in vars(arrays).items()})
    plan = plan.to(settings.device)
    return median_seconds(
        lambda: paged_attention(query, keys, values, table, plan, block_size=BLOCK_SIZE, scale=shape.head_dim**-0.5),
        settings.device,
    )


def make_batch(work: Workload, shape: Shape, dtype: torch.dtype, device: torch.device) -> Batch:
    """Random query, key pool and value pool on `device`, and the node table; blocks are in random order."""
    lengths = [work.prefix, *[own for own, _ in work.rows]]
    block_counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = torch.randperm(sum(block_counts), generator=torch.Generator().manual_seed(0))
    queries = [count for _, count in work.rows]

    def ints(values: object) -> np.ndarray:
        return np.array(list(values), np.int32)  # type: ignore[call-overload]

    arrays = TableArrays(
        node_block_start=ints([0, *accumulate(block_counts)]),
        blocks=blocks.int().numpy(),
        node_offset=ints([0] * len(lengths)),
        node_len=ints(lengths),
        node_position=ints([0] + [work.prefix] * len(work.rows)),
        path_start=ints(range(0, 2 * len(work.rows) + 1, 2)),
        path_nodes=ints(node for row in range(len(work.rows)) for node in (0, row + 1)),
        query_start=ints([0, *accumulate(queries)]),
        query_position=ints(work.prefix + own - count for own, count in work.rows),
    )
    table = NodeTable(**{name: torch.from_numpy(array) for name, array in vars(arrays).items()})
    table.check(BLOCK_SIZE, num_blocks=len(blocks), num_tokens=sum(queries))
    generator = torch.Generator(device).manual_seed(0)
    slots = len(blocks) * BLOCK_SIZE
    query, keys, values = (
        torch.randn(count, heads, shape.head_dim, generator=generator, device=device, dtype=dtype)
        for count, heads in ((sum(queries), shape.heads), (slots, shape.kv_heads), (slots, shape.kv_heads))
    )
    return query, keys, values, arrays


def kv_bytes(work: Workload, shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of keys and values that the rows read, and bytes of distinct ones."""
    token = 2 * shape.kv_heads * shape.head_dim * dtype.itemsize
    own = sum(own for own, _ in work.rows)
    return token * (own + work.prefix * len(work.rows)), token * (own + work.prefix)


def flops(work: Workload, shape: Shape) -> int:
    """Floating-point operations of both matrix products over visible pairs of query and key."""
    pairs = sum(count * (work.prefix + own) - count * (count - 1) // 2 for own, count in work.rows)
    return 4 * shape.heads * shape.head_dim * pairs


def time_operators(report: Report, settings: Settings) -> None:
    """Times of the kernels around attention against torch's operators, as a fraction of the copy's bandwidth."""
    tokens, hidden, heads, kv_heads, dim, vocab = (
        (3, 64, 4, 2, 16, 500) if settings.dry_run else (8192, 4096, 32, 8, 128, 151_936)
    )
    device, dtype = settings.device, HALF[0] if settings.dry_run else HALF[1]
    rows = min(tokens, 256)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, residual, weight, gate_up = (
        normal(tokens, hidden),
        normal(tokens, hidden),
        normal(hidden),
        normal(tokens, 4 * hidden),
    )
    query, key, value = normal(tokens, heads, dim), normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
    pools = normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
    slots, angles = torch.randperm(tokens, device=device), torch.rand(tokens, dim // 2, device=device)
    logits, row_ids = normal(rows, vocab), torch.arange(rows, device=device)
    starts, token_ids = (
        torch.arange(0, 2 * rows + 1, 2, device=device),
        torch.zeros(2 * rows, dtype=torch.int64, device=device),
    )

    def torch_norm() -> torch.Tensor:
        return F.rms_norm(residual.add_(x), (hidden,), weight, 1e-6)

    def torch_rotary() -> None:
        cos, sin = angles[slots, None].to(dtype), angles[slots, None].to(dtype)
        for target, source in ((None, query), (pools[0], key)):
            first, second = source.chunk(2, dim=-1)
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
            if target is not None:
                target.index_copy_(0, slots, turned)
        pools[1].index_copy_(0, slots, value)

    def torch_write() -> None:
        pools[0].index_copy_(0, slots, key)
        pools[1].index_copy_(0, slots, value)

    def torch_gate() -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    size = dtype.itemsize
    kv = 2 * tokens * kv_heads * dim
    runs: list[tuple[str, Callable[[], object], Callable[[], object], int]] = [
        ("norm and residual", lambda: rms_norm(x, weight, 1e-6, residual), torch_norm, 4 * x.numel() * size),
        (
            "rotary and KV write",
            lambda: rotary_and_write(query, key, value, angles, angles, slots, *pools, slots),
            torch_rotary,
            2 * (query.numel() + kv) * size,
        ),
        ("KV write", lambda: write_kv(key, value, *pools, slots), torch_write, 2 * kv * size),
        ("SiLU and product", lambda: silu_and_mul(gate_up), torch_gate, 3 * gate_up.numel() * size // 2),
        (
            "log-probs of 2 tokens a row",
            lambda: gathered_log_softmax(logits, row_ids, starts, token_ids),
            lambda: torch.log_softmax(logits.float(), -1)[row_ids.repeat_interleave(2), token_ids],
            logits.numel() * size,
        ),
    ]
    report.line(f"\n{tokens} tokens, hidden size {hidden}, {rows} rows of {vocab} logits, {dtype}")
    report.heading("kernel | #ms | #bytes / copy | #torch ms | #ratio")
    for name, kernel, in_torch, count in runs:
        ours, theirs = median_seconds(kernel, device), median_seconds(in_torch, device)
        use = count / ours / settings.peak_bytes
        report.row(name, f"{ours * 1e3:.3f}", f"{use:.2f}", f"{theirs * 1e3:.3f}", f"{theirs / ours:.2f}")
        report.results.setdefault("operators", {})[name] = {"seconds": ours, "torch": theirs, "bytes / copy": use}


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of one call: 20 timed by events on CUDA after 5 to warm up, one by the clock elsewhere.

    The device sleeps first, so that the calls wait in its queue and the host's launching is not part of the time.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    for _ in range(5):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(20)]
    torch.cuda._sleep(20_000_000)  # clock cycles, about 10 ms
    for begin_event, end_event in events:
        begin_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3
