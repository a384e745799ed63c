"""The fused decoder's layers in one call of the C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from llmsql.kernels.native.layers import LayerKind, Layers, LayerWeights, NormWeight

from .decoder_layer import DecoderLayer, Norm, StepTensors
from .kernel_attention import KernelAttention
from .native_linear import NativeGate, NativeLinear

_Kind = tuple[int, int | None]
"""Which of a step's rotary embeddings, and the window."""


class NativeLayers:
    """Layers of one shape with all weights in the kernels' layout, and queries projected with keys and values."""

    def __init__(self, layers: Sequence[DecoderLayer], weights: Sequence[LayerWeights], kinds: Sequence[_Kind]) -> None:
        """See `of`."""
        self._layers = layers
        self._kinds = kinds
        self._run = Layers(weights)

    @classmethod
    def of(cls, layers: Sequence[DecoderLayer], rotary_of: Sequence[int]) -> NativeLayers | None:
        """None where the layers are not such, or there is none.

        `rotary_of` says which of a step's rotary embeddings each layer turns by.
        """
        if not layers or not all(_is_native(layer) for layer in layers):
            return None
        kinds: dict[_Kind, int] = {}
        weights = [
            _weights(layer, kinds.setdefault((rotary, layer.options.window), len(kinds)))
            for layer, rotary in zip(layers, rotary_of)
        ]
        shapes = {(one.heads, one.kv_heads, one.head_dim, one.gate.outputs) for one in weights}
        return cls(layers, weights, list(kinds)) if len(shapes) == 1 else None

    def __call__(self, x: torch.Tensor, steps: Sequence[StepTensors]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last of them adds to the residual and the residual, of the embeddings x [tokens, hidden]."""
        attention, first = steps[0].attention, self._layers[0]
        assert isinstance(attention, KernelAttention), "the kernels read pools of their own"
        kinds = [
            LayerKind(
                steps[rotary].cos, steps[rotary].sin, attention.work_list(first.index, first.heads, window), window
            )
            for rotary, window in self._kinds
        ]
        cache = attention.cache
        pools = [(cache.keys[layer.index], cache.values[layer.index]) for layer in self._layers]
        return self._run(
            x, steps[0].positions, attention.slots, kinds, pools, attention.table, block_size=attention.block_size
        )


def _is_native(layer: DecoderLayer) -> bool:
    linears = (layer.key_value, layer.output, layer.down)
    return (
        layer.query is None
        and isinstance(layer.gate_up, NativeGate)
        and all(isinstance(linear, NativeLinear) for linear in linears)
    )


def _weights(layer: DecoderLayer, kind: int) -> LayerWeights:
    project, output, gate, down = layer.key_value, layer.output, layer.gate_up, layer.down
    assert isinstance(project, NativeLinear)
    assert isinstance(output, NativeLinear)
    assert isinstance(gate, NativeGate)
    assert isinstance(down, NativeLinear)
    return LayerWeights(
        input_norm=_norm(layer.input_norm),
        query_norm=_norm(layer.query_norm),
        key_norm=_norm(layer.key_norm),
        attention_norm=_norm(layer.attention_norm),
        mlp_input_norm=_norm(layer.mlp_input_norm),
        mlp_norm=_norm(layer.mlp_norm),
        project=project.weight,
        output=output.weight,
        gate=gate.gate.weight,
        up=gate.up.weight,
        down=down.weight,
        activation=gate.activation,
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        scale=layer.options.scale,
        softcap=layer.options.softcap,
        kind=kind,
    )


@overload
def _norm(norm: Norm) -> NormWeight: ...


@overload
def _norm(norm: Norm | None) -> NormWeight | None: ...


def _norm(norm: Norm | None) -> NormWeight | None:
    return None if norm is None else NormWeight(norm.weight.detach().contiguous(), norm.eps, norm.offset)
