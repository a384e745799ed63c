"""The small operations between a decoder's matrix products, as torch functions; a device may bring its own versions.

`Operators` is the seam: the fused decoder calls these and nothing else, so that a set of kernels with the same
signatures can take their place. A version may reuse the memory of the arguments that are said to be consumed; what it
returns is what counts.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class Operators(Protocol):
    """The operations of a decoder layer."""

    def rms_norm(
        self,
        x: torch.Tensor,  # [..., size], the last dimension contiguous
        weight: torch.Tensor,  # [size]
        eps: float,
        residual: torch.Tensor | None = None,  # as x; consumed
        *,
        offset: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(normed, total)` where `total` is `x + residual`, or x itself without a residual, and `normed` is its norm.

        The norm is taken in float32. `offset` is Gemma's way: times `1 + weight`, rounded after the product; otherwise
        the normed value is rounded to x's type before the product.
        """
        ...

    def angles(
        self,
        cos: torch.Tensor,  # [positions, head_dim // 2] float32
        sin: torch.Tensor,  # [positions, head_dim // 2] float32
        positions: torch.Tensor,  # [tokens] int64, rows of cos and sin
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rotary_and_write` takes as cos and sin, made once for all layers of a step that compute in `dtype`."""
        ...

    def rotary_and_write(
        self,
        query: torch.Tensor,  # [tokens, heads, head_dim]; consumed
        key: torch.Tensor,  # [tokens, kv_heads, head_dim]; consumed
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
        cos: torch.Tensor,  # of `angles`
        sin: torch.Tensor,
        positions: torch.Tensor,  # [tokens] int64
        key_pool: torch.Tensor,  # [num_slots, kv_heads, head_dim]
        value_pool: torch.Tensor,  # [num_slots, kv_heads, value_dim]
        slots: torch.Tensor,  # [tokens] int64
    ) -> torch.Tensor:
        """The rotated query [tokens, heads, head_dim]; the rotated key and the value are stored in their slots.

        Dimension i of a head turns with dimension i + head_dim // 2. Query, key and value may be strided views of one
        merged projection; their last dimension is contiguous.
        """
        ...

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`silu(gate) * up` [tokens, size] of the merged projection [tokens, 2 * size]; consumes it."""
        ...

    def gelu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`gelu(gate) * up` as `silu_and_mul`, with the tanh approximation of GELU."""
        ...


class TorchOperators:
    """The operations in plain torch: for the CPU, and the reference of every other version."""

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
        total = x if residual is None else residual.add_(x)
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True, dtype=torch.float32)  # squares and sum in one pass
        wide = total * norm.square_().div_(total.shape[-1]).add_(eps).rsqrt_()
        if offset:
            return wide.mul_(weight.float() + 1.0).to(x.dtype), total
        return wide.to(x.dtype).mul_(weight), total

    def angles(
        self, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Operators.angles`: [tokens, 1, head_dim // 2] of the step's tokens."""
        return cos.index_select(0, positions).to(dtype)[:, None], sin.index_select(0, positions).to(dtype)[:, None]

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
        key_pool.index_copy_(0, slots, _rotate(key, cos, sin).to(key_pool.dtype))
        value_pool.index_copy_(0, slots, value.to(value_pool.dtype))
        return _rotate(query, cos, sin)

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Operators.silu_and_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def gelu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Operators.gelu_and_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up)


def whole_tables(
    cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Operators.angles` of kernels, which look positions up in the tables themselves."""
    return cos, sin


def _rotate(
    x: torch.Tensor,  # [tokens, heads, head_dim]
    cos: torch.Tensor,  # [tokens, 1, head_dim // 2]
    sin: torch.Tensor,  # [tokens, 1, head_dim // 2]
) -> torch.Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    rotated = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
    return rotated
