"""How much of the prompts has been seen before as a prefix: the figure that every ordering is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from .cell_order import CellOrder, SharedUnits, TokenIds, shared_units, text_order, token_order
from .cells import Cells
from .errors import OptimizerError
from .grouping import AnyInts
from .ordering import Ordering
from .prefix_tree import prompt_sequences, walk


@dataclass(frozen=True)
class PrefixHits:
    """Totals over all prompt bodies, and the part found in an unbounded cache of the prompts before.

    `characters_partial` and `units_partial` count the begin of the first cell that differs, as far as some earlier
    prompt has it too; they come on top of `characters_hit` and `units_hit`, and are 0 when they were not asked for.
    """

    cells_total: int
    cells_hit: int
    characters_total: int
    characters_hit: int  # whole cells only
    characters_partial: int
    units_total: int  # in the lengths of the Cells: characters or tokens
    units_hit: int  # whole cells only
    units_partial: int  # exact in characters, and in tokens when their ids are given; else an estimate
    unit: str = "characters"

    @property
    def hit_rate(self) -> float:
        """Share of units already seen, partly shared cells included, 0 to 1."""
        return (self.units_hit + self.units_partial) / self.units_total if self.units_total else 0.0

    @property
    def cell_hit_rate(self) -> float:
        """Share of units in whole cells already seen, 0 to 1."""
        return self.units_hit / self.units_total if self.units_total else 0.0

    @property
    def character_hit_rate(self) -> float:
        """Share of characters already seen, partly shared cells included, 0 to 1."""
        return (self.characters_hit + self.characters_partial) / self.characters_total if self.characters_total else 0.0


def prefix_hits(
    cells: Cells, ordering: Ordering, *, partial: bool = True, token_ids: TokenIds | None = None
) -> PrefixHits:
    """Count prefix hits with a trie over whole cells and an unbounded cache.

    `partial=False` leaves out the characters of partly shared cells, which need the texts in sorted order. For cells
    measured in tokens, `token_ids` (per column the tokens of each distinct cell) makes the figures in tokens exact.
    Raises OptimizerError when the ordering belongs to a table of another shape, or `token_ids` to other cells.
    """
    shape = (cells.num_rows, cells.num_columns)
    if ordering.fields.shape != shape:
        raise OptimizerError(f"the ordering is for {ordering.fields.shape} rows and columns, the cells have {shape}")
    shown = cells.select_rows(ordering.rows)
    sequences = prompt_sequences(shown, ordering.fields)
    characters = [pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64) for texts in cells.texts]
    character_lengths = np.concatenate([np.zeros(1, dtype=np.int64), *characters])
    hits = hit_cells(sequences, len(cells.id_lengths))
    uses = np.bincount(sequences.ravel(), minlength=len(cells.id_lengths))
    uses[0] = hits[0] = 0
    units_hit = int(hits @ cells.id_lengths)

    def shared(order: CellOrder) -> SharedUnits:
        return shared_units(order.prompts(shown, ordering.fields), order)

    characters_partial = units_partial = 0
    if partial:
        characters_partial = shared(text_order(cells.with_lengths(characters, "characters"))).partial
        units_partial = characters_partial if cells.unit == "characters" else shared(text_order(cells)).partial
    if token_ids is not None:  # two cells of equal tokens are shared, too
        units_partial = shared(token_order(cells, token_ids)).total - units_hit
    return PrefixHits(
        cells_total=int(uses.sum()),
        cells_hit=int(hits.sum()),
        characters_total=int(uses @ character_lengths),
        characters_hit=int(hits @ character_lengths),
        characters_partial=characters_partial,
        units_total=int(uses @ cells.id_lengths),
        units_hit=units_hit,
        units_partial=units_partial,
        unit=cells.unit,
    )


def hit_cells(sequences: AnyInts, num_ids: int) -> npt.NDArray[np.int64]:
    """How often each global cell id is found as part of an earlier prompt's prefix, int64 [num_ids]."""
    hits = np.zeros(num_ids, dtype=np.int64)
    for level in walk(sequences):
        hits += np.bincount(sequences[level.rows[~level.starts], level.depth], minlength=num_ids)
    return hits
