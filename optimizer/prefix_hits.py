"""How much of the prompts has been seen before as a prefix: the figure that every ordering is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .cells import Cells
from .errors import OptimizerError
from .ordering import Ordering
from .partial_prefixes import common_prefix_characters
from .prefix_tree import prompt_sequences, walk


@dataclass(frozen=True)
class PrefixHits:
    """Totals over all prompt bodies, and the part found in an unbounded cache of the prompts before.

    `characters_partial` counts the begin of the first cell that differs, as far as some earlier prompt has it too.
    """

    cells_total: int
    cells_hit: int
    characters_total: int
    characters_hit: int  # whole cells only
    characters_partial: int  # on top of characters_hit; 0 when it was not asked for
    units_total: int  # in the lengths of the Cells: characters or tokens
    units_hit: int
    unit: str = "characters"

    @property
    def hit_rate(self) -> float:
        """Share of units in whole cells already seen, 0 to 1."""
        return self.units_hit / self.units_total if self.units_total else 0.0

    @property
    def character_hit_rate(self) -> float:
        """Share of characters already seen, partly shared cells included, 0 to 1."""
        return (self.characters_hit + self.characters_partial) / self.characters_total if self.characters_total else 0.0


def prefix_hits(cells: Cells, ordering: Ordering, *, partial: bool = True) -> PrefixHits:
    """Count prefix hits exactly with a trie over whole cells and an unbounded cache.

    `partial=False` leaves out the partly shared cells, which need the texts in sorted order.
    Raises OptimizerError when the ordering belongs to a table of another shape.
    """
    shape = (cells.num_rows, cells.num_columns)
    if ordering.fields.shape != shape:
        raise OptimizerError(f"the ordering is for {ordering.fields.shape} rows and columns, the cells have {shape}")
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    character_lengths = pc.utf8_length(cells.id_texts).to_numpy(zero_copy_only=False).astype(np.int64)
    hits = hit_cells(sequences, len(cells.id_lengths))
    uses = np.bincount(sequences.ravel(), minlength=len(cells.id_lengths))
    uses[0] = hits[0] = 0
    return PrefixHits(
        cells_total=int(uses.sum()),
        cells_hit=int(hits.sum()),
        characters_total=int(uses @ character_lengths),
        characters_hit=int(hits @ character_lengths),
        characters_partial=_partial_hits(sequences, cells.id_texts) if partial else 0,
        units_total=int(uses @ cells.id_lengths),
        units_hit=int(hits @ cells.id_lengths),
        unit=cells.unit,
    )


def hit_cells(sequences: npt.NDArray[np.int64], num_ids: int) -> npt.NDArray[np.int64]:
    """How often each global cell id is found as part of an earlier prompt's prefix, int64 [num_ids]."""
    hits = np.zeros(num_ids, dtype=np.int64)
    for level in walk(sequences):
        hits += np.bincount(sequences[level.rows[~level.starts], level.depth], minlength=num_ids)
    return hits


def _partial_hits(sequences: npt.NDArray[np.int64], texts: pa.Array) -> int:
    """Characters that sibling cells share at their begin: between neighbours when siblings are sorted by text."""
    order = pc.sort_indices(texts).to_numpy()  # the empty text of NULL sorts first and stays 0
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    ranked = rank[sequences]
    left, right = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for level in walk(ranked):
        firsts, parents = ranked[level.rows[level.starts], level.depth], level.parents[level.starts]
        siblings = np.flatnonzero(parents[1:] == parents[:-1])
        left.append(firsts[siblings])
        right.append(firsts[siblings + 1])
    shared = common_prefix_characters(texts, order[np.concatenate(left)], order[np.concatenate(right)])
    return int(shared.sum())
