"""The kernel compiled, without a GPU, in the launcher's configurations: types, shared memory, tensor cores."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from llmsql.kernels.attention import launch_configuration  # noqa: E402
from llmsql.kernels.attention_kernel import paged_attention_kernel  # noqa: E402

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block, CUDA programming guide
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
PREFILL, DECODE = 500.0, 1.0  # tokens per row

CONFIGURATIONS = {
    "llama prefill": {"head_dim": 128, "group": 4, "dtype": torch.bfloat16, "tokens_per_row": PREFILL},
    "llama decode": {"head_dim": 128, "group": 4, "dtype": torch.bfloat16, "tokens_per_row": DECODE},
    "qwen2 prefill": {"head_dim": 64, "group": 7, "dtype": torch.float16, "tokens_per_row": PREFILL},
    "gemma2 prefill": {
        "head_dim": 256,
        "group": 2,
        "dtype": torch.bfloat16,
        "tokens_per_row": PREFILL,
        "has_window": True,
        "has_softcap": True,
    },
    "phi3 decode": {
        "head_dim": 96,
        "group": 1,
        "dtype": torch.float16,
        "tokens_per_row": DECODE,
        "has_window": True,
    },
    "odd heads prefill": {"head_dim": 80, "group": 5, "dtype": torch.bfloat16, "tokens_per_row": PREFILL},
}


def compile_for(capability: int, *, block_size: int = 16, **shape):
    """Compile as the launcher would, with the pointer alignment and strides that torch's allocations have."""
    launch = launch_configuration(block_size=block_size, **shape)
    dtype = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[shape["dtype"]]
    types = {"num_rows": "i32", "window": "i32", "score_scale": "fp32", "score_cap": "fp32"}
    signature, attributes = {}, {}
    for index, name in enumerate(paged_attention_kernel.arg_names):
        if name in launch.constants:
            signature[name] = "constexpr"
        elif name.endswith("_stride"):
            signature[name] = "i32"
        elif name.endswith("_pointer"):
            signature[name] = f"*{dtype}"
        else:
            signature[name] = types.get(name, "*i32")
        if name.endswith("_stride") or signature[name].startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(paged_attention_kernel, signature, launch.constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options), launch


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_compiles_within_shared_memory_and_on_tensor_cores(name, capability):
    compiled, launch = compile_for(capability, **CONFIGURATIONS[name])
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    # Tiles of 16 rows are below the 64 that wgmma and tcgen05 take.
    instruction = TENSOR_CORE[capability] if launch.constants["BLOCK_M"] >= 64 else "mma.sync"
    assert instruction in compiled.asm["ptx"]
    # The gather through the block list still moves 16 bytes at a time, while the tile before it is computed.
    assert "cp.async.cg.shared.global" in compiled.asm["ptx"]


@pytest.mark.parametrize("shape", [(256, 128, torch.bfloat16), (256, 128, torch.float32)])
def test_largest_shapes_fit_the_smallest_device(shape):
    head_dim, group, dtype = shape
    compiled, _ = compile_for(80, head_dim=head_dim, group=group, dtype=dtype, tokens_per_row=PREFILL)
    assert compiled.metadata.shared <= SHARED_MEMORY[80]


def test_common_shapes_fit_a_workstation_card():
    for name in ("llama prefill", "gemma2 prefill"):
        compiled, _ = compile_for(86, **CONFIGURATIONS[name])
        assert compiled.metadata.shared <= 99 * 1024


def test_configuration_follows_the_batch():
    shape = {"head_dim": 128, "dtype": torch.bfloat16, "block_size": 16}
    rows = [launch_configuration(group=4, tokens_per_row=n, **shape).constants["BLOCK_M"] for n in (1, 4, 8, 16, 1000)]
    assert rows == [16, 16, 32, 64, 128]
    odd = launch_configuration(group=5, tokens_per_row=1, **shape).constants
    assert (odd["BLOCK_M"], odd["BLOCK_Q"]) == (16, 3)
    wide = launch_configuration(group=71, tokens_per_row=1, **shape).constants
    assert (wide["BLOCK_M"], wide["BLOCK_Q"]) == (128, 1)
