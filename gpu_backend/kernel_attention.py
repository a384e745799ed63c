"""A step's attention by kernels: Triton's on CUDA (for tests in its interpreter), those in C++ on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmsql.kernels import NodeTable, WorkList
from llmsql.kernels.work_list import TENSORS

from .attention_kernels import AttentionKernels
from .attention_work import LayerTiles, plan_work
from .batch import StepBatch
from .cascade import shared_groups
from .kv_cache import KVCache, LayerShape

_Name = tuple[int, LayerShape, int | None]
STEPS_OF_A_PLAN = 64
"""For how many steps that only decode the same rows a work list serves. More leave its programs less even."""


@dataclass(frozen=True)
class _Planned:
    """A work list on the device."""

    work: WorkList
    query_position: npt.NDArray[np.int32]  # [rows] when it was made


class KernelAttention:
    """One step's attention metadata on the device, made once and used by every layer.

    Takes the place of `StepAttention`. All arrays of the node table go to the device in one copy, and those of a work
    list in another; there is one work list per sliding window and shape of heads. Give the attention of the step before
    as `previous`: while the same rows decode, its work lists serve again.
    """

    def __init__(
        self,
        batch: StepBatch,
        cache: KVCache,
        kernels: AttentionKernels,
        *,
        cascade: bool,
        device: torch.device,
        split_keys: bool = True,
        previous: KernelAttention | None = None,
    ) -> None:
        self.cache = cache
        self.slots = torch.from_numpy(batch.slots).to(device)
        self._kernels = kernels
        self._device = device
        self.block_size = batch.block_size
        self._arrays = batch.table
        self._cascade = cascade
        self._processors = kernels.num_processors(device) if split_keys else 0
        self.table = NodeTable(**dict(zip(vars(batch.table), to_device(list(vars(batch.table).values()), device))))
        self._work: dict[_Name, WorkList] = {}
        self._structure = batch.structure
        self._decodes = batch.structure >= 0 and len(batch.token_ids) == len(batch.table.query_position)
        self._planned: dict[_Name, _Planned] = {}
        if previous is not None and self._decodes and self._like(previous):
            self._planned = previous._planned

    def write(
        self,
        layer: int,
        key: torch.Tensor,  # [tokens, kv_heads, key_dim]
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    ) -> None:
        """Store the step's keys and values of one layer."""
        self._kernels.write_kv(key, value, self.cache.keys[layer], self.cache.values[layer], self.slots)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [tokens, heads, key_dim]
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of all query tokens of the step, [tokens, heads, value_dim]; the step's KV must be written."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return self._kernels.paged_attention(
            query.to(keys.dtype),
            keys,
            values,
            self.table,
            self.work_list(layer, query.shape[1], window),
            block_size=self.block_size,
            scale=scale,
            sliding_window=window,
            softcap=softcap,
        ).to(query.dtype)

    def work_list(self, layer: int, heads: int, window: int | None) -> WorkList:
        """What the kernel does for a layer: that of all layers of the same shape and window."""
        name = (heads, self.cache.shapes[layer], window)
        work = self._work.get(name)
        if work is None:
            work = self._work[name] = self._again(name) or self._plan(name, self.cache.keys[layer].dtype)
        return work

    def _like(self, other: KernelAttention) -> bool:
        """Whether the other's work lists are for the same rows, and made in the same way."""
        return (other._structure, other._kernels.name, other._cascade, other._processors, other._device) == (
            self._structure,
            self._kernels.name,
            self._cascade,
            self._processors,
            self._device,
        )

    def _again(self, name: _Name) -> WorkList | None:
        """The work list of an earlier step, with the positions of this one."""
        planned = self._planned.get(name)
        if planned is None:
            return None
        steps = self._arrays.query_position - planned.query_position
        if int(steps.min()) < 0 or int(steps.max()) > STEPS_OF_A_PLAN:
            return None
        position = self.table.query_position.index_select(0, planned.work.entry_token)  # a row has one token
        return replace(planned.work, entry_position=position)

    def _plan(self, name: _Name, dtype: torch.dtype) -> WorkList:
        heads, shape, window = name
        dims = {"key_dim": shape.key_dim, "value_dim": shape.value_dim}
        group = heads // shape.kv_heads
        costs = self._kernels.costs(heads=heads, kv_heads=shape.kv_heads, **dims, itemsize=dtype.itemsize)
        limits = self._kernels.tile_limits(**dims, group=group, dtype=dtype)
        tiles = LayerTiles(shape.kv_heads, group, limits, window)
        groups = shared_groups(self._arrays, costs) if self._cascade else []
        keys_to_come = STEPS_OF_A_PLAN if self._decodes else 0
        work = plan_work(self._arrays, groups, tiles, processors=self._processors, keys_to_come=keys_to_come)
        sent = to_device([getattr(work, tensor).numpy() for tensor in TENSORS], self._device)
        tensors: dict[str, Any] = dict(zip(TENSORS, sent))
        work = replace(work, **tensors)
        if self._decodes:
            self._planned[name] = _Planned(work, self._arrays.query_position)
        return work


def to_device(arrays: list[npt.NDArray[np.int32]], device: torch.device) -> list[torch.Tensor]:
    """The arrays on `device`, sent in one copy; each begins at 16 bytes, which kernels are compiled for."""
    starts = np.cumsum([0, *(-(-len(array.reshape(-1)) // 4) * 4 for array in arrays)]).tolist()
    packed = np.zeros(starts[-1], np.int32)
    for start, array in zip(starts, arrays):
        packed[start : start + array.size] = array.reshape(-1)
    host = torch.from_numpy(packed)
    sent = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
    return [sent[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays)]
