"""Every kernel compiled without a GPU, as its launcher launches it: types, shared memory, tensor cores, registers."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from compile_only import SHARED_MEMORY, Compiled, compiling_for
from kernel_cases import Node, Row, build

from llmsql.kernels import activation, attention, kv_write, log_probs, merge, norm, paged_attention, rotary
from llmsql.kernels.attention_launch import tile_limits

TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

MODELS = {
    "llama 8b": {"heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": BF16},
    "qwen2 0.5b": {"heads": 14, "kv_heads": 2, "head_dim": 64, "dtype": FP16},
    "gemma2": {
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 256,
        "dtype": BF16,
        "sliding_window": 64,
        "softcap": 50.0,
    },
    "phi3": {"heads": 4, "kv_heads": 4, "head_dim": 96, "dtype": FP16, "sliding_window": 64},
    "odd heads": {"heads": 10, "kv_heads": 2, "head_dim": 80, "dtype": BF16},
}


def attention_launches(capability: int, *, processors: int = 132, **model) -> list[Compiled]:
    """A step of decode tokens and a long chunk below one shared prefix: what the engine launches for it."""
    nodes = [Node(None, 160), *[Node(0, 140) for _ in range(6)]]
    rows = [*[Row(i, 299, 1) for i in range(1, 6)], Row(6, 160, 140)]
    case = build(nodes, rows, block_size=16, **model)
    work = case.work(levels=1, processors=processors)
    with compiling_for(capability) as compiled, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "merge_parts", lambda *_: None)
        paged_attention(*case.arguments, work, **case.options)
    return compiled


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        *((name, 90) for name in MODELS),
        *((name, sm) for name in ("llama 8b", "qwen2 0.5b", "gemma2") for sm in (80, 100)),
    ],
)
def test_attention_fits_shared_memory_and_runs_on_tensor_cores(name, capability):
    compiled = attention_launches(capability, **MODELS[name])
    shape = {"key_dim": MODELS[name]["head_dim"], "value_dim": MODELS[name]["head_dim"]}
    limits = tile_limits(group=MODELS[name]["heads"] // MODELS[name]["kv_heads"], dtype=MODELS[name]["dtype"], **shape)
    assert [one.constants["BLOCK_M"] for one in compiled] == [limits.smallest, limits.largest]
    for one in compiled:
        assert len(one.kernel.asm["cubin"]) > 0
        assert one.kernel.metadata.shared <= SHARED_MEMORY[capability]
        # Tiles of 16 rows are below the 64 that wgmma and tcgen05 take.
        instruction = TENSOR_CORE[capability] if one.constants["BLOCK_M"] >= 64 else "mma.sync"
        assert instruction in one.ptx
        # The gather through the block list still moves 16 bytes at a time, while the tile before it is computed.
        assert "cp.async.cg.shared.global" in one.ptx


@pytest.mark.parametrize("name", ["llama 8b", "gemma2"])
def test_attention_keeps_its_tiles_in_registers(name):
    for one in attention_launches(90, **MODELS[name]):
        # A spilled accumulator would be 256 bytes a thread and more; some numbers used once do no harm.
        assert one.spilled_bytes(90) <= 64, one.constants


def test_attention_in_one_part_needs_no_merge():
    case = build([Node(None, 60)], [Row(0, 20, 40)], heads=4, kv_heads=1, head_dim=128, block_size=16, dtype=BF16)
    with compiling_for(90) as compiled:
        paged_attention(*case.arguments, case.work(), **case.options)
    assert [(one.constants["BLOCK_M"], one.constants["HAS_PARTS"]) for one in compiled] == [(128, False)]
    assert TENSOR_CORE[90] in compiled[0].ptx


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_largest_shapes_fit_the_smallest_data_centre_card(dtype):
    for one in attention_launches(80, heads=128, kv_heads=1, head_dim=256, dtype=dtype):
        assert one.kernel.metadata.shared <= SHARED_MEMORY[80]


def test_common_shapes_fit_a_workstation_card():
    for one in attention_launches(86, **MODELS["llama 8b"]):
        assert one.kernel.metadata.shared <= SHARED_MEMORY[86]


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_other_kernels_compile_in_the_shapes_of_a_model(dtype, capability):
    tokens, heads, kv_heads, dim, hidden, vocab = 5, 32, 8, 128, 4096, 128_256

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    merged = empty(tokens, (heads + 2 * kv_heads) * dim)
    query, key, value = (
        x.view(tokens, -1, dim) for x in merged.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    )
    pools, slots = (empty(64, kv_heads, dim), empty(64, kv_heads, dim)), torch.zeros(tokens, dtype=torch.int64)
    angles = torch.empty(100, dim // 2)
    with compiling_for(capability) as compiled:
        norm.rms_norm(empty(tokens, hidden), empty(hidden), 1e-5, empty(tokens, hidden))
        norm.rms_norm(query, empty(dim), 1e-6, offset=True)
        rotary.rotary_and_write(query, key, value, angles, angles, slots, *pools, slots)
        kv_write.write_kv(key, value, *pools, slots)
        activation.silu_and_mul(empty(tokens, 2 * 14336))
        activation.gelu_and_mul(empty(tokens, 2 * 14336))
        log_probs.gathered_log_softmax(empty(tokens, vocab), slots[:3], torch.zeros(4, dtype=torch.int64), slots)
        parts = torch.empty(4, heads, dim), torch.empty(4, heads)
        merge.merge_parts(empty(tokens, heads, dim), *parts, *(torch.zeros(n, dtype=torch.int32) for n in (2, 3)))
    assert len(compiled) == 8
    for one in compiled:
        assert one.kernel.metadata.shared <= SHARED_MEMORY[capability]
        assert "ld.global.v4.b32" in one.ptx or "ld.global.v2" in one.ptx or "cp.async" in one.ptx, one.name


def test_tiles_follow_the_batch():
    shape = {"heads": 4, "kv_heads": 1, "head_dim": 128, "dtype": BF16}
    nodes = [Node(None, 600)]

    def tiles(*queries: int) -> list[int]:
        return [launch.block_m for launch in build(nodes, [Row(0, 0, n) for n in queries], **shape).work().launches]

    assert [tiles(n) for n in (1, 4, 5, 9, 17, 500)] == [[16], [16], [64], [64], [128], [128]]
    assert tiles(1, 1, 300) == [16, 128]
    assert build(nodes, [Row(0, 0, 4)], **(shape | {"heads": 5})).work().items[:, 1].tolist() == [4]
    limits = {"key_dim": 128, "value_dim": 128, "dtype": BF16}
    assert tile_limits(group=71, **limits).smallest == tile_limits(group=71, **limits).largest == 128
