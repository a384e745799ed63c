"""Products with packed weights on the CPU: the launcher of linear.cpp.

Limits: float32 or bfloat16, all tensors of a call alike; any sizes. A row's result does not depend on the other rows.
The reference is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from .library import load

DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = {"silu": 1, "gelu": 2}
"""Of a gate; GELU is that of transformers' "gelu_pytorch_tanh"."""


class _Call(ctypes.Structure):
    """`LinearCall` of calls.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "x", "weight", "up", "bias", "up_bias")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "x_stride", "out_stride")),
        *((name, ctypes.c_int64) for name in ("activation", "is_bf16", "threads")),
    ]


@dataclass(frozen=True)
class PackedWeight:
    """A weight [outputs, inputs] as the kernel reads it, with its bias."""

    packed: torch.Tensor  # float32, one-dimensional: its bits, for bfloat16 two numbers to one
    bias: torch.Tensor | None  # [outputs]
    inputs: int
    outputs: int
    dtype: torch.dtype

    def unpacked(self) -> torch.Tensor:
        """The weight [outputs, inputs], bit by bit as it was."""
        weight = torch.empty(self.outputs, self.inputs, dtype=self.dtype)
        load().llmsql_unpack(self.packed.data_ptr(), *_sizes(weight), weight.data_ptr())
        return weight

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows `index` [rows] int64 of the weight, bit by bit as they were: [rows, inputs]."""
        assert index.dtype == torch.int64, "an index in int64"
        assert index.is_contiguous(), "a contiguous index"
        out = torch.empty(len(index), self.inputs, dtype=self.dtype)
        read = load().llmsql_packed_rows
        read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        kind = (self.dtype == torch.bfloat16, torch.get_num_threads())
        read(self.packed.data_ptr(), self.inputs, index.data_ptr(), len(index), *kind, out.data_ptr())
        return out


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Lay out a weight [outputs, inputs] for the kernel; it takes as much memory, up to 63 outputs more.

    Raises UnavailableError where there are no C++ kernels.
    """
    assert weight.dtype in DTYPES, f"float32 or bfloat16, not {weight.dtype}"
    assert bias is None or bias.dtype == weight.dtype, "weight and bias of one type"
    outputs, inputs = weight.shape
    weight = weight.contiguous()
    library = load()
    library.llmsql_packed_size.restype = ctypes.c_int64
    library.llmsql_pack.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p]
    library.llmsql_unpack.argtypes = library.llmsql_pack.argtypes
    packed = torch.empty(library.llmsql_packed_size(inputs, outputs, weight.dtype == torch.bfloat16))
    library.llmsql_pack(weight.data_ptr(), *_sizes(weight), packed.data_ptr())
    return PackedWeight(packed, None if bias is None else bias.contiguous(), inputs, outputs, weight.dtype)


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """`x @ weight.T + bias`: [rows, inputs] -> [rows, outputs]."""
    return _multiply(x, weight, None, 0)


def gated_linear(x: torch.Tensor, gate: PackedWeight, up: PackedWeight, activation: str) -> torch.Tensor:
    """`activation(x @ gate.T) * (x @ up.T)`, with biases: [rows, inputs] -> [rows, outputs].

    `activation` is one of `ACTIVATIONS`; it and the product are computed in float32.
    """
    assert (gate.inputs, gate.outputs) == (up.inputs, up.outputs), "gate and up of one shape"
    return _multiply(x, gate, up, ACTIVATIONS[activation])


def _multiply(x: torch.Tensor, weight: PackedWeight, up: PackedWeight | None, activation: int) -> torch.Tensor:
    assert x.dtype == weight.dtype, f"x is {x.dtype}, the weight {weight.dtype}"
    assert x.dim() == 2, "rows of inputs"
    assert x.shape[1] == weight.inputs, f"{x.shape[1]} inputs for a weight of {weight.inputs}"
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty((len(x), weight.outputs))
    call = _Call(
        out.data_ptr(),
        x.data_ptr(),
        weight.packed.data_ptr(),
        None if up is None else up.packed.data_ptr(),
        None if weight.bias is None else weight.bias.data_ptr(),
        None if up is None or up.bias is None else up.bias.data_ptr(),
        len(x),
        weight.inputs,
        weight.outputs,
        x.stride(0),
        weight.outputs,
        activation,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    load().llmsql_linear(ctypes.byref(call))
    return out


def _sizes(weight: torch.Tensor) -> tuple[int, int, int, int]:
    outputs, inputs = weight.shape
    return inputs, outputs, weight.dtype == torch.bfloat16, torch.get_num_threads()
