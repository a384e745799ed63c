"""Tiles of attention (query tokens against one stretch of keys), batched into few products that copy few keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attention_part import Part, Run
from .cascade import Costs, Ints

MAX_SCORES = 4_000_000
"""Query-key pairs of one product at most where tiles are padded to one size, so that masks stay small."""
MAX_KEYS = 65_536
"""Keys copied for one product at most."""
PADDING = 8_000
"""Padding up to this many query-key pairs is cheaper than one more product."""


@dataclass(frozen=True)
class Tiles:
    """Query tokens at consecutive places of the plan, against keys in the order of their positions.

    With `causal` the last key is the last query's own, and each query sees the keys up to its own, of which `window`
    ones at most; otherwise all see all.
    """

    place: Ints  # [tiles] of the first query token
    num_queries: Ints  # [tiles]
    num_keys: Ints  # [tiles]
    slot: Ints  # [tiles] of the first key; -1 where keys do not lie in one run
    listed_from: Ints  # [tiles] where its slots begin in `listed`, if they do not
    listed: Ints  # slots of the keys that do not lie in runs
    causal: bool
    window: int | None = None

    def parts(self, costs: Costs) -> list[Part]:
        """Parts that hold each tile once.

        Tiles of one size whose keys lie at even distances in the pool are one product over the pool itself, where that
        saves more copying than it costs. For the others keys are copied, or also not, where a product has them alone.
        """
        parts, used = [], np.zeros(len(self.place), np.bool_)
        for chosen in self._even_runs(least_keys=costs.product / costs.gather):
            part = self._run_part(chosen)
            assert part is not None
            parts.append(part)
            used[chosen] = True
        for chosen in self._buckets(np.flatnonzero(~used)):
            parts.append(self._run_part(chosen) or self._copied_part(chosen))
        return parts

    def _even_runs(self, least_keys: float) -> list[Ints]:
        """Tiles of one size at even distances, as many together as may be, where they have so many keys in all."""
        order = np.flatnonzero(self.slot >= 0)
        order = order[np.lexsort((self.slot[order], self.num_keys[order], self.num_queries[order]))]
        slots, queries = self.slot[order].tolist(), self.num_queries[order].tolist()
        sizes = self.num_keys[order].tolist()
        runs, begin, last = [], 0, len(order)
        for end in range(1, last + 1):
            if end < last and sizes[end] == sizes[begin] and queries[end] == queries[begin]:
                step = slots[end] - slots[end - 1]
                if step > 0 and (end == begin + 1 or step == slots[begin + 1] - slots[begin]):
                    continue
            if (end - begin) * sizes[begin] >= least_keys:
                runs.append(order[begin:end])
            begin = end
        return runs

    def _run_part(self, chosen: Ints) -> Part | None:
        """The tiles as one part that reads its keys where they lie, if they are of one size at even distances."""
        num_queries, num_keys = int(self.num_queries[chosen[0]]), int(self.num_keys[chosen[0]])
        slots = self.slot[chosen]
        steps = np.diff(slots)
        if slots[0] < 0 or (len(steps) and (steps[0] <= 0 or (steps != steps[0]).any())):
            return None
        if (self.num_queries[chosen] != num_queries).any() or (self.num_keys[chosen] != num_keys).any():
            return None
        tokens = self.place[chosen, None] + np.arange(num_queries)
        run = Run(int(slots[0]), int(steps[0]) if len(steps) else 0)
        if not self.causal or num_queries == 1:  # a decode step's tile ends with the query's own key
            return Part(tokens, num_keys, run)
        newest = np.arange(num_keys - num_queries, num_keys)[None]
        return Part(tokens, num_keys, run, newest, self.window).without_idle_mask()

    def _copied_part(self, chosen: Ints) -> Part:
        num_queries, num_keys = self.num_queries[chosen, None], self.num_keys[chosen, None]
        query = np.minimum(np.arange(num_queries.max()), num_queries - 1)  # [tiles, queries]
        key = np.minimum(np.arange(num_keys.max()), num_keys - 1)  # [tiles, keys]
        slots = self.slot[chosen, None] + key
        listed = np.flatnonzero(self.slot[chosen] < 0)
        slots[listed] = self.listed[self.listed_from[chosen[listed], None] + key[listed]]
        newest = query + num_keys - num_queries if self.causal else num_keys - 1
        return Part(self.place[chosen, None] + query, key.shape[1], slots, newest, self.window).without_idle_mask()

    def _buckets(self, rest: Ints) -> list[Ints]:
        """Group tiles of similar size, so that padding costs less than the products it saves."""
        order = rest[np.lexsort((self.slot[rest], self.num_keys[rest], np.ceil(np.log2(self.num_queries[rest]))))]
        buckets: list[Ints] = []
        begin, exact, size_q, size_k = 0, 0, 0, 0
        for end, (num_q, num_k) in enumerate(zip(self.num_queries[order].tolist(), self.num_keys[order].tolist())):
            wider_q, wider_k = max(size_q, num_q), max(size_k, num_k)
            tiles = end - begin + 1
            padded = tiles * wider_q * wider_k
            too_large = padded > MAX_SCORES or tiles * wider_k > MAX_KEYS
            wasteful = padded > 1.25 * (exact + num_q * num_k) + PADDING
            if end > begin and (too_large or wasteful):
                buckets.append(order[begin:end])
                begin, exact, wider_q, wider_k = end, 0, num_q, num_k
            exact += num_q * num_k
            size_q, size_k = wider_q, wider_k
        if len(order):
            buckets.append(order[begin:])
        return buckets
