"""In which numbers a model is computed."""

from __future__ import annotations

import torch

from .errors import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(dtype: str | torch.dtype, device: torch.device, own: torch.dtype | None) -> torch.dtype:
    """The type that `dtype` stands for; `own` is that of the checkpoint, None if unknown. Raises ModelError.

    "auto" on the CPU is the checkpoint's own type where the processor has instructions for it, which leaves bfloat16
    on some and float32 on all; else float32, which holds every bfloat16 and float16 number. "auto" on CUDA is bfloat16,
    or float16 for float16 checkpoints and before Ampere.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in _DTYPES.values():
            raise ModelError(f"models are not run in {dtype}: use {', '.join(map(repr, _DTYPES))} or 'auto'")
        return dtype
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise ModelError(f"unknown dtype {dtype!r}: use 'auto', {', '.join(map(repr, _DTYPES))} or a torch.dtype")
    if device.type == "cuda":
        bfloat16 = own != torch.float16 and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float16
    return torch.bfloat16 if own == torch.bfloat16 and cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers: AVX-512 BF16, AMX or ARM's BF16, by torch's own account."""
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
