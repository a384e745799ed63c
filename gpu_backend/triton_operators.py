"""The operations between a decoder's matrix products as Triton kernels; each signature is `Operators`' own."""

from __future__ import annotations

import torch

from llmsql.kernels import gelu_and_mul, rms_norm, rotary_and_write, silu_and_mul


class TritonOperators:
    """`Operators` on CUDA; they overwrite what `Operators` allows to be consumed."""

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

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Operators.silu_and_mul`."""
        return silu_and_mul(gate_up)

    def gelu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Operators.gelu_and_mul`."""
        return gelu_and_mul(gate_up)
