"""The operations between a decoder's matrix products as C++ kernels, where these are faster than torch's operators."""

from __future__ import annotations

import torch

from llmsql.kernels.native.operators import rms_norm, rotary_and_write

from .operators import TorchOperators


class NativeOperators(TorchOperators):
    """`Operators` on the CPU: one pass over memory, and one call, for what torch does in eight."""

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        *,
        offset: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Operators.rms_norm`."""
        return rms_norm(x, weight, eps, residual, offset=offset)

    def angles(
        self, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Operators.angles`: the tables as they are."""
        return cos, sin

    def rotary_and_write(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """See `Operators.rotary_and_write`."""
        return rotary_and_write(query, key, value, cos, sin, positions, key_pool, value_pool, slots)
