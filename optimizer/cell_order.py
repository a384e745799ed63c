"""Distinct cells in sorted order: where rows part, a cell shares most with its neighbours in that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .cells import Cells
from .errors import OptimizerError
from .grouping import AnyInts, Indices, Ints
from .literals import TEXT, quote_name
from .partial_prefixes import common_prefix_characters, common_prefix_tokens
from .prefix_tree import PromptCells, walk
from .sorted_texts import RangeMinimum, SortedTexts

TokenIds = Sequence[Sequence[npt.NDArray[np.integer]]]  # per column, for each distinct cell its tokens


@dataclass(frozen=True)
class CellOrder:
    """All distinct cells by rank; rank 0 is NULL, which has no text."""

    ranks: Indices  # [ids] rank of each global cell id
    lengths: Ints  # [ranks] in units of the cells
    begins: RangeMinimum  # [ranks] what each cell begins with as the one before it does, in characters or tokens
    characters: Ints | None = None  # [ranks] where `begins` are characters and the lengths are not

    def prompts(self, cells: Cells, fields: AnyInts) -> PromptCells:
        """The ranks of the cells of each row in prompt order; `fields` are [rows, columns]."""
        return PromptCells(cells, fields, self.ranks)

    def shared(self, left: AnyInts, right: AnyInts) -> AnyInts:
        """Units with which both of two cells begin, [pairs]; the ranks on the right are the higher ones."""
        common = self.begins.between(left + 1, right + 1)
        if self.characters is None:
            return common
        in_units = [common * self.lengths[ranks] // self.characters[ranks] for ranks in (left, right)]
        estimate: AnyInts = np.maximum(np.minimum(*in_units) - 1, 0)
        return estimate


@dataclass(frozen=True)
class SharedUnits:
    """What an unbounded cache finds of rows that come one after the other, in whichever order."""

    whole: int  # units in cells that an earlier row has too, behind the same cells
    partial: int  # units in the begin of the first cell that differs

    @property
    def total(self) -> int:
        """Units found in all."""
        return self.whole + self.partial


def shared_units(sequences: AnyInts | PromptCells, order: CellOrder) -> SharedUnits:
    """What rows share as prefixes; `sequences` [rows, cells] are ranks, such as those of `CellOrder.prompts`."""
    return shared_in_order(sequences, order, np.arange(sequences.shape[0], dtype=np.int32), 0)[0]


def shared_in_order(
    sequences: AnyInts | PromptCells, order: CellOrder, rows: Indices, depth: int
) -> tuple[SharedUnits, Indices]:
    """What rows that share their cells up to a depth share from there on, and the rows in depth-first order."""
    whole = partial = 0
    in_order = rows.copy()
    for level in walk(sequences, rows, depth):
        in_order[level.positions] = level.rows
        whole += int(order.lengths[level.cells[~level.starts]].sum())
        firsts, parents = level.cells[level.starts], level.parents[level.starts]
        siblings = np.flatnonzero((parents[1:] == parents[:-1]) & (firsts[:-1] > 0))
        partial += int(order.shared(firsts[siblings], firsts[siblings + 1]).sum(dtype=np.int64))
    return SharedUnits(whole, partial), in_order


@dataclass(frozen=True)
class TextGroup:
    """Texts that begin with the same head, as the cells of all columns of one name do."""

    texts: SortedTexts
    ids: Ints  # [texts] cell ids


def text_order(cells: Cells) -> CellOrder:
    """Cells sorted by their text.

    What two cells share is counted in characters. In other units it is an estimate, mostly a little low: the units
    that the shared characters take up on average in either cell, less one, since that at which they part may differ.
    """
    order = order_groups([cells_of_name(cells, name) for name in sorted(set(cells.names), key=quote_name)])
    lengths = np.empty_like(cells.id_lengths)
    lengths[order.ranks] = cells.id_lengths
    if cells.unit == "characters":  # texts may be cut short, so that their own lengths are not those of the cells
        return replace(order, lengths=lengths)
    return replace(order, lengths=lengths, characters=order.lengths)


def cells_of_name(cells: Cells, name: str) -> TextGroup:
    """The distinct cells of the columns of a name."""
    columns = [column for column in range(cells.num_columns) if cells.names[column] == name]
    ids = np.concatenate([np.arange(cells.offsets[column], cells.offsets[column + 1]) for column in columns])
    if len(columns) == 1:
        return TextGroup(cells.sorted_texts(columns[0]), ids)
    texts = pa.concat_arrays([cells.texts[column] for column in columns])
    return TextGroup(SortedTexts(texts, cells.sorted_texts(columns[0]).head), ids)


def order_groups(groups: Sequence[TextGroup]) -> CellOrder:
    """Texts sorted by group, in the order of the groups, and in each by text; lengths are in characters.

    Groups that stand beside each other in a node of the tree must be given sorted by head, and no head may be the
    begin of another's; together they hold every id from 1 on once.
    """
    groups = [group for group in groups if len(group.ids)]
    count = 1 + sum(len(group.ids) for group in groups)
    ranks, lengths, begins = np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros(count, np.int32)
    heads, places = pa.array([group.texts.head for group in groups], TEXT), np.arange(len(groups))
    first = 1
    for group, head_shared in zip(groups, [0, *common_prefix_characters(heads, places[:-1], places[1:]).tolist()]):
        order = group.texts.order
        end = first + len(order)
        ranks[group.ids[order]] = np.arange(first, end, dtype=np.int32)
        lengths[first:end] = pc.utf8_length(group.texts.texts).to_numpy(zero_copy_only=False)[order]
        begins[first:end] = group.texts.shared
        begins[first] = head_shared
        first = end
    return CellOrder(ranks, lengths, RangeMinimum(begins))


def token_order(cells: Cells, token_ids: TokenIds) -> CellOrder:
    """Cells sorted by their tokens, so that what two of them share is exact; those of equal tokens have one rank.

    No cell's tokens may be the begin of another's; they are not where a token ends with the cell's newline.
    Raises OptimizerError when the tokens are not as many as the lengths of the cells say.
    """
    runs = [run for column in token_ids for run in column]
    lengths = np.fromiter((len(run) for run in runs), np.int64, len(runs))
    if [len(column) for column in token_ids] != [len(texts) for texts in cells.texts] or (
        not np.array_equal(lengths, cells.id_lengths[1:])
    ):
        raise OptimizerError(
            "token_ids must give for each column the tokens of each distinct cell, as many as the cells' lengths say; "
            "make the cells with `with_lengths` from the same tokens"
        )
    tokens = np.concatenate(runs).astype(np.int32) if runs else np.zeros(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # bytes of big-endian numbers sort as the numbers do
    buffers = [None, pa.py_buffer(offsets * 4), pa.py_buffer(tokens.astype(">u4"))]
    encoded = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(runs), buffers).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy().astype(np.int64)
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = 1 + np.arange(len(order))
    ranks = np.concatenate([[0], rank[encoded.indices.to_numpy()]])
    example = np.zeros(len(order) + 1, dtype=np.int64)  # by rank, a cell that has these tokens
    example[ranks[1:]] = np.arange(len(runs))
    begins = np.zeros(len(example), dtype=np.int32)
    begins[2:] = common_prefix_tokens(tokens, offsets, example[1:-1], example[2:])
    in_order = np.append(lengths, 0)[example] * (np.arange(len(example)) > 0)
    return CellOrder(ranks.astype(np.int32), in_order, RangeMinimum(begins))
