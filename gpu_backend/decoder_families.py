"""From transformers' modules to a fused decoder, for the families whose code is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .context import read_context
from .cpu_memory import give_back_freed_memory
from .decoder import FusedDecoder
from .decoder_layer import DecoderLayer, Norm
from .embedding import Embedding, PlainEmbedding
from .errors import EngineError
from .file_pages import FilePages
from .gated_linear import join_gated
from .kv_cache import LayerAttention, LayerShape
from .linear import Linear, join
from .operators import Operators
from .rotary import Angles, RotaryTable
from .row_sizes import RowSizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .native_layers import NativeLayers

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3")
"""Classes `<family>ForCausalLM` of transformers; Gemma3's is its language model without the vision tower."""

_ACTIVATIONS = {"silu": "silu_and_mul", "swish": "silu_and_mul", "gelu_pytorch_tanh": "gelu_and_mul"}
_TORCH_MODULES = (nn.Linear, nn.Embedding, nn.ModuleList)


class NotFusedError(EngineError):
    """The model has no fused decoder; the message says why."""


def check_family(model: PreTrainedModel) -> None:
    """Raise NotFusedError unless every module of the model is transformers' own code of a known family."""
    name = type(model).__name__
    family = name.removesuffix("ForCausalLM")
    package = f"transformers.models.{family.lower()}."
    if family not in FAMILIES or not type(model).__module__.startswith(package):
        raise NotFusedError(f"{name} is not one of the families {', '.join(FAMILIES)}")
    for path, module in model.named_modules():
        kind = type(module)
        known = kind in _TORCH_MODULES or kind.__module__.startswith((package, "transformers.activations", "torch.nn"))
        if not known:
            raise NotFusedError(f"module {path} of {name} is a {kind.__module__}.{kind.__name__}")
        hooks = (module._forward_hooks, module._forward_pre_hooks, getattr(module, "parametrizations", None))
        if any(hooks) or "forward" in vars(module):
            raise NotFusedError(f"module {path} of {name} is changed by hooks or by a forward method of its own")
    activation = _activation(model)
    if activation not in _ACTIVATIONS:
        raise NotFusedError(f"{name} has the activation {activation!r}")


def fuse(
    model: PreTrainedModel,
    attention: Sequence[LayerAttention],
    shapes: Sequence[LayerShape],
    *,
    operators: Operators,
    copy: bool,
    kernels: str = "torch",
    pages: FilePages | None = None,
) -> FusedDecoder:
    """The decoder with the model's weights, layer by layer, so that one layer at most is held twice.

    `attention` is how the model's own layers were seen to attend. See `linear.join` for what happens to the modules'
    weights, and for `copy`; `pages` are those of weights that were read for us alone.
    """
    base: Any = model.model
    config: Any = model.config
    parts = _Parts(model, operators, copy, kernels)
    tables: dict[str, int] = {}
    rotary_of = []
    for number in range(len(base.layers)):
        kind = config.layer_types[number] if isinstance(getattr(base.rotary_emb, "rope_type", None), dict) else ""
        rotary_of.append(tables.setdefault(kind, len(tables)))
    layers = []
    for number, (layer, options, shape) in enumerate(zip(base.layers, attention, shapes)):
        layers.append(parts.layer(layer, number, options, shape, last=number == len(base.layers) - 1))
        if pages is not None:
            pages.drop()
    give_back_freed_memory()
    embedding, context = base.embed_tokens, read_context(model).length
    scale, device = _embedding_scale(embedding), embedding.weight.device
    embed, head = parts.ends(embedding, model.lm_head)
    if pages is not None:
        pages.drop()  # of the head
    give_back_freed_memory()
    return FusedDecoder(
        embedding=embed,
        embedding_scale=scale,
        layers=layers,
        rotary=[RotaryTable(_angles(base.rotary_emb, kind), device, context) for kind in tables],
        rotary_of=rotary_of,
        norm=parts.norm(base, "norm"),
        head=head,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        operators=operators,
        row_sizes=parts.row_sizes,
        together=_together(layers[:-1], rotary_of) if kernels == "native" else None,
    )


def _together(layers: Sequence[DecoderLayer], rotary_of: Sequence[int]) -> NativeLayers | None:
    from .native_layers import NativeLayers

    return NativeLayers.of(layers, rotary_of)


class _Parts:
    """Takes the parts of a model's layers from their modules."""

    def __init__(self, model: PreTrainedModel, operators: Operators, copy: bool, kernels: str) -> None:
        self.row_sizes = RowSizes()
        self._operators = operators
        self._copy = copy
        self._native = kernels == "native"
        self._gemma = type(model).__name__.startswith("Gemma")
        self._activation = _ACTIVATIONS[_activation(model)]

    def layer(self, layer: Any, index: int, options: LayerAttention, shape: LayerShape, *, last: bool) -> DecoderLayer:
        attention, mlp = layer.self_attn, layer.mlp
        query, keys = attention.q_proj, [attention.k_proj, attention.v_proj]
        return DecoderLayer(
            index=index,
            heads=query.out_features // shape.key_dim,
            kv_heads=shape.kv_heads,
            head_dim=shape.key_dim,
            options=options,
            input_norm=self.norm(layer, "input_layernorm"),
            query_norm=self.norm(attention, "q_norm") if hasattr(attention, "q_norm") else None,
            key_norm=self.norm(attention, "k_norm") if hasattr(attention, "k_norm") else None,
            query=self.join(query) if last else None,
            key_value=self.join(*keys) if last else self.join(query, *keys),
            output=self.join(attention.o_proj),
            attention_norm=self.norm(layer, "post_attention_layernorm") if self._gemma else None,
            mlp_input_norm=self.norm(layer, "pre_feedforward_layernorm" if self._gemma else "post_attention_layernorm"),
            gate_up=join_gated(
                mlp.gate_proj,
                mlp.up_proj,
                self._activation,
                self._operators,
                row_sizes=self.row_sizes,
                copy=self._copy,
                native=self._native,
            ),
            down=self.join(mlp.down_proj),
            mlp_norm=self.norm(layer, "post_feedforward_layernorm") if self._gemma else None,
        )

    def ends(self, embedding: nn.Embedding, head: nn.Linear) -> tuple[Embedding, Linear]:
        """The embeddings and the head; where they share a weight it is held once."""
        if head.weight is not embedding.weight:
            return PlainEmbedding(embedding.weight), self.join(head)
        if self._copy and self._native:
            from .native_linear import NativeEmbedding, NativeLinear

            product = NativeLinear([head])
            return NativeEmbedding(embedding, head, product), product
        return PlainEmbedding(embedding.weight), self.join(head, copy=False)

    def join(self, *modules: nn.Linear, copy: bool | None = None) -> Linear:
        copy = self._copy if copy is None else copy
        return join(modules, row_sizes=self.row_sizes, copy=copy, native=self._native)

    def norm(self, owner: Any, name: str) -> Norm:
        module = getattr(owner, name)
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        return Norm(module.weight, eps, offset=self._gemma)


def _activation(model: PreTrainedModel) -> str:
    name = getattr(model.config, "hidden_activation", None) or getattr(model.config, "hidden_act", None)
    return str(name)


def _embedding_scale(embedding: Any) -> float | None:
    """Gemma's factor, rounded to the weights' type as there."""
    scale = getattr(embedding, "embed_scale", None)
    return None if scale is None else float(scale.to(embedding.weight.dtype))


def _angles(module: Any, kind: str) -> Angles:
    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        cos, sin = module(like, positions, *([kind] if kind else []))
        return cos, sin

    return angles
