"""The gated half of an MLP, `activation(gate(x)) * up(x)`, with the weights of its two linear modules."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from .linear import Linear, PackedLinear, can_pack, join
from .operators import Operators, TorchOperators
from .row_sizes import RowSizes

_ONEDNN = {"silu_and_mul": ("swish", ""), "gelu_and_mul": ("gelu", "tanh")}
"""What oneDNN calls the activation of an operator, and the form of it."""


class GatedLinear(Protocol):
    """Two linear modules, of which the activated one scales the other."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`activation(gate(x)) * up(x)`: [tokens, inputs] -> [tokens, outputs]."""
        ...

    def restore(self) -> None:
        """Give the modules weights to run with by themselves again."""
        ...


def join_gated(
    gate: nn.Linear,
    up: nn.Linear,
    activation: str,
    operators: Operators,
    *,
    row_sizes: RowSizes,
    copy: bool,
    native: bool = False,
) -> GatedLinear:
    """The two modules; `activation` is the name of one of `operators`. See `linear.join` for the rest."""
    if copy and native:
        from .native_linear import NativeGate

        return NativeGate(gate, up, activation)
    by_torch = getattr(type(operators), activation) is getattr(TorchOperators, activation)
    if copy and by_torch and can_pack(gate.weight):
        return PackedGate(gate, up, activation, row_sizes)
    return MergedGate(join([gate, up], row_sizes=row_sizes, copy=copy), operators, activation)


class MergedGate:
    """Both modules in one product, and an operator on its two halves."""

    def __init__(self, both: Linear, operators: Operators, activation: str) -> None:
        self.both = both
        self._activate = getattr(operators, activation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `GatedLinear`."""
        gated: torch.Tensor = self._activate(self.both(x))
        return gated

    def restore(self) -> None:
        """See `GatedLinear`."""
        self.both.restore()


class PackedGate:
    """Two packed products: oneDNN applies activation and scaling to the results while it has them in registers.

    The operator by itself would cost little, but as a parallel region of its own it wakes the threads once more.
    """

    def __init__(self, gate: nn.Linear, up: nn.Linear, activation: str, row_sizes: RowSizes) -> None:
        self._gate, self._up = PackedLinear([gate], row_sizes), PackedLinear([up], row_sizes)
        self._activation = _ONEDNN[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `GatedLinear`."""
        rows, x = len(x), self._gate.pad(x)
        product = self._up.scaled(x, self._gate.activated(x, *self._activation))
        return product if len(product) == rows else product[:rows]

    def restore(self) -> None:
        """See `GatedLinear`."""
        self._gate.restore()
        self._up.restore()
