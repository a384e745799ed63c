"""Products by the C++ kernels, with the weights of `nn.Linear` modules in the kernels' layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmsql.kernels.native.linear import DTYPES, PackedWeight, gated_linear, linear, pack

from .linear import give_back, merged

_ACTIVATIONS = {"silu_and_mul": "silu", "gelu_and_mul": "gelu"}
"""What the kernels call the activation of an operator."""


def can_pack(weight: torch.Tensor) -> bool:
    """Whether the kernels multiply with weights of this type."""
    return weight.device.type == "cpu" and weight.dtype in DTYPES


class NativeLinear:
    """The modules' weights as one, in place of the modules' own. A row's product does not depend on the other rows."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._modules = list(modules)
        self.weight = _pack(modules)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return linear(x, self.weight)

    def restore(self) -> None:
        """Unpack the weights; they come back bit by bit as they were."""
        give_back(self._modules, self.weight.unpacked())


class NativeEmbedding:
    """Rows of the weight that a model's head multiplies with, read where its product does: it is held once."""

    def __init__(self, module: nn.Embedding, head: nn.Linear, product: NativeLinear) -> None:
        self._module, self._head, self._weight = module, head, product.weight
        module.weight = head.weight

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `Embedding`."""
        return self._weight.rows(token_ids)

    def restore(self) -> None:
        """See `Embedding`; the head is restored before."""
        self._module.weight = self._head.weight


class NativeGate:
    """The gated half of an MLP in one pass: results of the gate meet those of the other while they are at hand."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, activation: str) -> None:
        self.gate, self.up = NativeLinear([gate]), NativeLinear([up])
        self.activation = _ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `GatedLinear`."""
        return gated_linear(x, self.gate.weight, self.up.weight, self.activation)

    def restore(self) -> None:
        """See `GatedLinear`."""
        self.gate.restore()
        self.up.restore()


def _pack(modules: Sequence[nn.Linear]) -> PackedWeight:
    weight, bias = merged(modules)
    packed = pack(weight.detach(), None if bias is None else bias.detach())
    for module in modules:
        module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return packed
