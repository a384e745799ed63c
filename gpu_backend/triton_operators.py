"""The operations between a decoder's matrix products as Triton kernels; each signature is `Operators`' own."""

from __future__ import annotations

from llmsql.kernels import gelu_and_mul, rms_norm, rotary_and_write, silu_and_mul

from .operators import whole_tables


class TritonOperators:
    """`Operators` on CUDA; they overwrite what `Operators` allows to be consumed."""

    rms_norm = staticmethod(rms_norm)
    angles = staticmethod(whole_tables)
    rotary_and_write = staticmethod(rotary_and_write)
    silu_and_mul = staticmethod(silu_and_mul)
    gelu_and_mul = staticmethod(gelu_and_mul)
