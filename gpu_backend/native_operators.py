"""The operations between a decoder's matrix products as C++ kernels, where these are faster than torch's operators."""

from __future__ import annotations

from llmsql.kernels.native.operators import rms_norm, rotary_and_write

from .operators import TorchOperators, whole_tables


class NativeOperators(TorchOperators):
    """`Operators` on the CPU: one pass over memory, and one call, for what torch does in eight."""

    rms_norm = staticmethod(rms_norm)
    angles = staticmethod(whole_tables)
    rotary_and_write = staticmethod(rotary_and_write)
