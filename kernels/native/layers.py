"""Whole decoder layers on the CPU, one after the other: the launcher of layers.cpp.

Limits: those of the kernels that it runs. What it computes is what these compute, called one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .attention import AttentionCall, attention_call
from .library import load
from .linear import ACTIVATIONS, PackedWeight

if TYPE_CHECKING:
    from ..node_table import NodeTable
    from ..work_list import WorkList

_NORMS = ("input_norm", "query_norm", "key_norm", "attention_norm", "mlp_input_norm", "mlp_norm")
_WEIGHTS = ("project", "output", "gate", "up", "down")
_BUFFERS = ("residual", "hidden", "normed", "projected", "query", "key", "attended", "gated")


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("offset", ctypes.c_int64), ("eps", ctypes.c_float)]


class _Weight(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("packed", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in _NORMS),
        *((name, _Weight) for name in _WEIGHTS),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim", "activation", "kind")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    ]


class _Kind(ctypes.Structure):
    _fields_ = [("attention", AttentionCall), ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p)]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_BUFFERS, "positions", "slots")),
        *((name, ctypes.c_int64) for name in ("tokens", "is_bf16", "threads")),
    ]


@dataclass(frozen=True)
class NormWeight:
    """A root mean square norm; with `offset` its weight is added to one."""

    weight: torch.Tensor  # [size]
    eps: float
    offset: bool


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer. The norms that may be None are those of Qwen3 and Gemma."""

    input_norm: NormWeight
    query_norm: NormWeight | None
    key_norm: NormWeight | None
    attention_norm: NormWeight | None
    mlp_input_norm: NormWeight
    mlp_norm: NormWeight | None
    project: PackedWeight  # queries, keys and values, one after the other
    output: PackedWeight
    gate: PackedWeight
    up: PackedWeight
    down: PackedWeight
    activation: str  # one of `linear.ACTIVATIONS`
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    kind: int  # which of the step's kinds it is


@dataclass(frozen=True)
class LayerKind:
    """What layers with the same window and rotary embedding have in common in a step."""

    cos: torch.Tensor  # [positions, head_dim // 2] float32 contiguous
    sin: torch.Tensor
    work: WorkList
    sliding_window: int | None


class Layers:
    """Layers of one decoder, of one shape of heads."""

    def __init__(self, layers: Sequence[LayerWeights]) -> None:
        """Raises UnavailableError where there are no C++ kernels."""
        self._layers = layers  # the kernels read their memory
        assert len({_check(layer) for layer in layers}) == 1, "layers of one shape and type"
        self._calls = (_Layer * len(layers))(*(_call(layer) for layer in layers))
        self._run = load().llmsql_layers
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]

    def __call__(
        self,
        x: torch.Tensor,  # [tokens, hidden] contiguous: the embeddings; overwritten
        positions: torch.Tensor,  # [tokens] int64
        slots: torch.Tensor,  # [tokens] int64; -1: not written
        kinds: Sequence[LayerKind],
        pools: Sequence[tuple[torch.Tensor, torch.Tensor]],  # keys and values of each layer, of `pool.pool_shapes`
        table: NodeTable,
        *,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last layer adds to the residual, and the residual, [tokens, hidden]; all KV is written."""
        layer = self._layers[0]
        assert x.is_contiguous(), "contiguous embeddings"
        assert x.dtype == layer.project.dtype, f"x is {x.dtype}, the weights {layer.project.dtype}"
        assert positions.dtype == slots.dtype == torch.int64, "positions and slots in int64"
        assert len(pools) == len(self._layers), "a pool for each layer"
        tokens, query_size, key_size = len(x), layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        hidden, normed = torch.empty_like(x), torch.empty_like(x)
        sizes = (layer.project.outputs, query_size, key_size, query_size, layer.gate.outputs)
        projected, query, key, attended, gated = (x.new_empty((tokens, size)) for size in sizes)
        most_parts = max(kind.work.num_parts for kind in kinds)
        parts = torch.empty((most_parts, layer.heads, layer.head_dim))
        lse = torch.empty((most_parts, layer.heads))
        by_head = query.view(tokens, layer.heads, layer.head_dim)
        calls = (_Kind * len(kinds))()
        for call, kind in zip(calls, kinds):
            call.attention = attention_call(
                (attended, parts, lse, by_head, *pools[0]),
                table,
                kind.work,
                kv_heads=layer.kv_heads,
                value_dim=layer.head_dim,
                block_size=block_size,
                sliding_window=kind.sliding_window,
            )
            call.cos, call.sin = kind.cos.data_ptr(), kind.sin.data_ptr()
        for place, (keys, values) in zip(self._calls, pools):
            place.keys, place.values = keys.data_ptr(), values.data_ptr()
        buffers = (x, hidden, normed, projected, query, key, attended, gated, positions, slots)
        pointers = [tensor.data_ptr() for tensor in buffers]
        step = _Step(*pointers, tokens, x.dtype == torch.bfloat16, torch.get_num_threads())
        self._run(self._calls, len(self._layers), calls, ctypes.byref(step))
        return hidden, x


def _check(layer: LayerWeights) -> tuple[object, ...]:
    """Assert that the parts fit each other; what all layers must have in common."""
    hidden, query_size = layer.project.inputs, layer.heads * layer.head_dim
    dtype = layer.project.dtype
    assert layer.project.outputs == query_size + 2 * layer.kv_heads * layer.head_dim, "queries, keys and values"
    shapes = [(weight.inputs, weight.outputs) for weight in (layer.output, layer.gate, layer.up, layer.down)]
    inner = layer.gate.outputs
    assert shapes == [(query_size, hidden), (hidden, inner), (hidden, inner), (inner, hidden)], "weights that fit"
    assert all(getattr(layer, name).dtype == dtype for name in _WEIGHTS), "weights of one type"
    sizes = dict.fromkeys(_NORMS, hidden) | dict.fromkeys(("query_norm", "key_norm"), layer.head_dim)
    for name, size in sizes.items():
        norm = getattr(layer, name)
        assert norm is None or (norm.weight.shape, norm.weight.dtype) == ((size,), dtype), f"{name} of {size} numbers"
    return dtype, hidden, layer.heads, layer.kv_heads, layer.head_dim, inner


def _call(layer: LayerWeights) -> _Layer:
    norms = [getattr(layer, name) for name in _NORMS]
    weights = [getattr(layer, name) for name in _WEIGHTS]
    return _Layer(
        *(_Norm() if norm is None else _Norm(norm.weight.data_ptr(), norm.offset, norm.eps) for norm in norms),
        *(
            _Weight(w.packed.data_ptr(), None if w.bias is None else w.bias.data_ptr(), w.inputs, w.outputs)
            for w in weights
        ),
        None,
        None,
        layer.heads,
        layer.kv_heads,
        layer.head_dim,
        ACTIVATIONS[layer.activation],
        layer.kind,
        layer.scale,
        layer.softcap or 0.0,
    )
