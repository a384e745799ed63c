"""Attention over the prefix tree with torch: one step's plan, run in every layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .attention_part import Part, Run
from .attention_plan import Plan, Planner
from .batch import StepBatch
from .cascade import Costs, Ints, cpu_costs
from .kv_cache import KVCache
from .products import attend_blocks, merge_into

Index = torch.Tensor | slice


class StepAttention:
    """One step's attention metadata, made once and used by every layer; `KernelAttention` is its twin in Triton.

    Give the attention of the step before as `previous`: where only the lengths of rows have changed since, its plan
    serves again.
    """

    def __init__(
        self,
        batch: StepBatch,
        cache: KVCache,
        *,
        cascade: bool,
        device: torch.device,
        previous: StepAttention | None = None,
        costs: Costs | None = None,
    ) -> None:
        """`costs` takes the place of those by the shape of the layers."""
        self.cache = cache
        self.slots = torch.from_numpy(batch.slots).to(device)
        self._batch = batch
        self._cascade = cascade
        self._device = device
        self._costs = costs
        self._planner: Planner | None = None
        self._plans: dict[tuple[int | None, int], _PlanTensors] = {}
        self._last_planner: Planner | None = None
        self._last_plans: dict[tuple[int | None, int], _PlanTensors] = {}
        if previous is not None and previous._cascade == cascade:
            self._last_planner, self._last_plans = previous._planner, previous._plans

    def write(
        self,
        layer: int,
        key: torch.Tensor,  # [tokens, kv_heads, key_dim]
        value: torch.Tensor,  # [tokens, kv_heads, value_dim]
    ) -> None:
        """Store the step's keys and values of one layer."""
        self.cache.write(layer, self.slots, key, value)

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
        dtype = query.dtype
        (tokens, heads, key_dim), (_, kv_heads, value_dim) = query.shape, values.shape
        group = heads // kv_heads
        plan = self._plan(keys, values, heads, window)
        if plan.order is not None:
            query = query.index_select(0, plan.order)
        query = query.to(keys.dtype).reshape(tokens, kv_heads, group, key_dim)
        by_head = query.transpose(0, 1).contiguous() if plan.by_head else query.transpose(0, 1)

        def run(part: _PartTensors) -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = attend_blocks(
                part.queries(by_head), part.keys(keys), part.keys(values), part.mask, scale=scale, softcap=softcap
            )
            return out.reshape(-1, group, kv_heads, value_dim), lse.reshape(-1, group, kv_heads)

        def together(product: _Product) -> tuple[torch.Tensor, torch.Tensor]:
            parts = [run(part) for part in product.parts]
            out, lse = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts))
            if product.inverse is not None:
                out, lse = out.index_select(0, product.inverse), lse.index_select(0, product.inverse)
            return out, lse

        out, lse = together(plan.own)
        if plan.levels:
            out = out.float()
        for level in plan.levels:
            merge_into(out, lse, *together(level), tokens=level.tokens, keep_lse=level is not plan.levels[-1])
        if plan.back is not None:
            out = out.index_select(0, plan.back)
        return out.transpose(1, 2).to(dtype).reshape(tokens, heads, value_dim)

    def _plan(self, keys: torch.Tensor, values: torch.Tensor, heads: int, window: int | None) -> _PlanTensors:
        _, kv_heads, key_dim = keys.shape
        group = heads // kv_heads
        plan = self._plans.get((window, group))
        if plan is None:
            if self._planner is None:
                costs = self._costs or cpu_costs(
                    heads=heads,
                    kv_heads=kv_heads,
                    key_dim=key_dim,
                    value_dim=values.shape[2],
                    itemsize=keys.dtype.itemsize,
                )
                table, block_size = self._batch.table, self._batch.block_size
                self._planner = Planner(
                    table, block_size, cascade=self._cascade, costs=costs, previous=self._last_planner
                )
                self._last_planner = None
            last = self._last_plans.get((window, group))
            plan = _PlanTensors(self._planner.plan(window), last, group, keys.dtype, self._device)
            self._plans[(window, group)] = plan
        return plan


class _PlanTensors:
    """A plan on the device; what it has in common with the step before is taken over from there."""

    def __init__(
        self, plan: Plan, last: _PlanTensors | None, group: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.plan = plan
        self.own = _Product(plan.own, group, dtype, device)
        self.order: torch.Tensor | None = None
        self.back: torch.Tensor | None = None
        self.levels: list[_Product]
        if last is not None and last.plan.levels is plan.levels:
            self.order, self.back, self.levels = last.order, last.back, last.levels
        else:
            if plan.order is not None:
                self.order = torch.from_numpy(plan.order).to(device)
                self.back = torch.from_numpy(np.argsort(plan.order)).to(device)
            self.levels = [_Product(parts, group, dtype, device) for parts in plan.levels]
        self.by_head = bool(plan.levels) or any(part.tokens.shape[1] > 1 for part in plan.own)
        """Whether products take several tokens of a block at once: then queries are laid out by head first."""


class _Product:
    """Parts over different query tokens, on the device."""

    def __init__(self, parts: list[Part], group: int, dtype: torch.dtype, device: torch.device) -> None:
        self.parts = [_PartTensors(part, group, dtype, device) for part in parts]
        shown = np.concatenate([part.tokens.reshape(-1) for part in parts])
        tokens, where = np.unique(shown, return_index=True)
        self.tokens = _index(tokens, device)
        """The places that the parts show, in ascending order."""
        in_place = len(where) == len(shown) and _is_range(where, 0)
        self.inverse = None if in_place else torch.from_numpy(where).to(device)
        """Where each of them stands in the parts' results; None: at its index."""


class _PartTensors:
    """A part on the device."""

    def __init__(self, part: Part, group: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks, queries = part.tokens.shape
        self.lanes = queries * group
        self.tokens = _index(part.tokens.reshape(-1), device)
        self.num_keys = part.num_keys
        self.run = part.slots if isinstance(part.slots, Run) else None
        self.slots = None if isinstance(part.slots, Run) else torch.from_numpy(part.slots.reshape(-1)).to(device)
        self.mask = None if part.newest is None else _mask(part, part.newest, group, dtype, device)

    def queries(self, query: torch.Tensor) -> torch.Tensor:
        """[blocks, kv_heads, queries * group, dim] of [kv_heads, tokens, group, dim]."""
        chosen = query[:, self.tokens] if isinstance(self.tokens, slice) else query.index_select(1, self.tokens)
        if self.lanes == chosen.shape[2]:
            return chosen.transpose(0, 1)
        return chosen.view(len(chosen), self.blocks, self.lanes, -1).transpose(0, 1)

    def keys(self, pool: torch.Tensor) -> torch.Tensor:
        """[blocks, kv_heads, keys, dim] of the pool [num_slots, kv_heads, dim]: a view where keys lie evenly."""
        _, kv_heads, dim = pool.shape
        if self.run is None:
            assert self.slots is not None
            return pool.index_select(0, self.slots).view(self.blocks, self.num_keys, kv_heads, dim).transpose(1, 2)
        token = kv_heads * dim
        return pool.as_strided(
            (self.blocks, kv_heads, self.num_keys, dim),
            (self.run.stride * token, dim, token, 1),
            pool.storage_offset() + self.run.first * token,
        )


def _mask(part: Part, newest: Ints, group: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """0 or the lowest finite number, since a query may see no key here; the same for all queries of a group."""
    last = torch.from_numpy(newest).to(device)[:, :, None]
    key = torch.arange(part.num_keys, device=device)
    hidden = key > last
    if part.window is not None:
        hidden |= key <= last - part.window
    if hidden.shape[1] > 1:
        hidden = hidden.repeat_interleave(group, dim=1)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def _index(indices: Ints, device: torch.device) -> Index:
    """A slice where the indices are consecutive, which saves a copy."""
    first = int(indices[0])
    return slice(first, first + len(indices)) if _is_range(indices, first) else torch.from_numpy(indices).to(device)


def _is_range(indices: npt.NDArray[np.int64], first: int) -> bool:
    return int(indices[0]) == first and bool((np.diff(indices) == 1).all())
