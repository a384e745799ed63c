"""Products with the weights of `nn.Linear` modules: merged where they read the same input, laid out for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .row_sizes import RowSizes

_PACKED_FOR_ROWS = 256
"""oneDNN chooses one layout for all products of two rows and more; it asks for a number of rows all the same."""


class Linear(Protocol):
    """One or more linear modules as one product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of all modules, one after the other: [tokens, inputs] -> [tokens, outputs of all]."""
        ...

    def restore(self) -> None:
        """Give the modules weights to run with by themselves again."""
        ...


def join(modules: Sequence[nn.Linear], *, row_sizes: RowSizes, copy: bool = True, native: bool = False) -> Linear:
    """The modules as one product: by the C++ kernels if `native`, or on the CPU of as many rows as `row_sizes` says.

    The modules' weights move: they become views of a merged weight or, with kernels or oneDNN on a CPU, are emptied
    once they are packed, so that no weight is held twice. `copy=False` leaves weights where they are, and multiplies
    them one by one.
    """
    if not copy:
        return SplitLinear(modules, row_sizes)
    if native:
        from .native_linear import NativeLinear

        return NativeLinear(modules)
    if can_pack(modules[0].weight):
        return PackedLinear(modules, row_sizes)
    return MergedLinear(modules)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies with weights in its own layout: on CPUs, where this torch was built with it."""
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not (hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported())
    )


class MergedLinear:
    """The modules' weights below each other in one matrix, of which the modules keep views."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        weight, self._bias = merged(modules)
        self._weight = weight
        if len(modules) > 1:
            give_back(modules, weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return F.linear(x, self._weight, self._bias)

    def restore(self) -> None:
        """Nothing to do: the modules' weights are views."""


class SplitLinear:
    """The modules one by one, without a copy of their weights: for weights that somebody else reads as well."""

    def __init__(self, modules: Sequence[nn.Linear], row_sizes: RowSizes) -> None:
        self._parts = [(module.weight, module.bias) for module in modules]
        self._row_sizes = row_sizes if can_pack(modules[0].weight) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        if self._row_sizes is None:
            outputs = [F.linear(x, weight, bias) for weight, bias in self._parts]
        else:  # in float32 faster than F.linear, which is MKL's
            outputs = [_multiply(x, weight, bias, self._row_sizes) for weight, bias in self._parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def restore(self) -> None:
        """Nothing to do: the modules are as they were."""


class PackedLinear:
    """The modules' weights in oneDNN's blocked layout, in place of the modules' own.

    Products of few rows are the faster for it: with plain weights oneDNN and MKL rearrange them at every call.
    """

    def __init__(self, modules: Sequence[nn.Linear], row_sizes: RowSizes) -> None:
        self._modules = list(modules)
        self._row_sizes = row_sizes
        weight, self._bias = merged(modules)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
        for module in modules:
            module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return _multiply(x, self._weight, self._bias, self._row_sizes)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of x and as many more as its product is made with."""
        extra = self._row_sizes.padded(len(x)) - len(x)
        return F.pad(x, (0, 0, 0, extra)) if extra else x

    def activated(self, x: torch.Tensor, activation: str, form: str) -> torch.Tensor:
        """oneDNN's `activation` of the product with padded rows."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, activation, [], form)
        return product

    def scaled(self, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The product with padded rows, times `factors` [rows, outputs]."""
        multiply = torch.ops.mkldnn._linear_pointwise.binary
        product: torch.Tensor = multiply(x, factors, self._weight, self._bias, "mul")
        return product

    def restore(self) -> None:
        """Unpack the weights; they come back bit by bit as they were."""
        give_back(self._modules, self._weight.to_dense())


def _multiply(
    x: torch.Tensor,  # [rows, inputs]
    weight: torch.Tensor,  # [outputs, inputs], packed or not
    bias: torch.Tensor | None,
    row_sizes: RowSizes,
) -> torch.Tensor:
    """oneDNN's product [rows, outputs], with padded rows."""
    rows = len(x)
    extra = row_sizes.padded(rows) - rows
    x = F.pad(x, (0, 0, 0, extra)) if extra else x
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product[:rows] if extra else product


def merged(modules: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [outputs of all, inputs] and bias [outputs of all]; the modules' own tensors where there is one module."""
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    weight = torch.cat([module.weight.detach() for module in modules])
    if all(module.bias is None for module in modules):
        return weight, None
    biases = [weight.new_zeros(module.out_features) if module.bias is None else module.bias for module in modules]
    return weight, torch.cat([bias.detach() for bias in biases])


def give_back(modules: Sequence[nn.Linear], weight: torch.Tensor) -> None:
    """Let the modules have views of their part of `weight` [outputs of all, inputs]."""
    for module, part in zip(modules, torch.split(weight, [module.out_features for module in modules])):
        module.weight = nn.Parameter(part, requires_grad=False)
