"""Distinct cells in sorted order: where rows part, a cell shares most with its neighbours in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .cells import Cells
from .errors import OptimizerError
from .grouping import Ints, first_of_group, group_keys
from .literals import TEXT, quote_name
from .partial_prefixes import common_prefix_characters, common_prefix_tokens
from .prefix_tree import prompt_sequences, walk
from .sorted_texts import SortedTexts

TokenIds = Sequence[Sequence[npt.NDArray[np.integer]]]  # per column, for each distinct cell its tokens


@dataclass(frozen=True)
class CellOrder:
    """All distinct cells by rank; rank 0 is NULL, which has no text."""

    ranks: Ints  # [ids] rank of each global cell id
    lengths: Ints  # [ranks] in units of the cells
    shared: Callable[[Ints, Ints], Ints]  # ranks, other ranks -> units with which both cells begin, [pairs]

    def sequences(self, cells: Cells, fields: npt.NDArray[np.integer]) -> Ints:
        """Ranks of the cells in prompt order, [rows, columns], else like `prompt_sequences`."""
        sequences = prompt_sequences(cells, fields)
        for place in range(sequences.shape[1]):
            sequences[:, place] = self.ranks[sequences[:, place]]
        return sequences


@dataclass(frozen=True)
class SharedUnits:
    """What an unbounded cache finds of rows that come one after the other, in whichever order."""

    whole: int  # units in cells that an earlier row has too, behind the same cells
    partial: int  # units in the begin of the first cell that differs

    @property
    def total(self) -> int:
        """Units found in all."""
        return self.whole + self.partial


def shared_units(sequences: Ints, order: CellOrder) -> SharedUnits:
    """What rows share as prefixes; `sequences` [rows, cells] are those of `CellOrder.sequences`."""
    whole, size = 0, len(order.lengths)
    pairs = [np.zeros(0, dtype=np.int64)]
    for level in walk(sequences):
        ranks = sequences[level.rows, level.depth]
        whole += int(order.lengths[ranks[~level.starts]].sum())
        firsts, parents = ranks[level.starts], level.parents[level.starts]
        siblings = np.flatnonzero((parents[1:] == parents[:-1]) & (firsts[:-1] > 0))
        pairs.append(firsts[siblings] * size + firsts[siblings + 1])
    keys = np.concatenate(pairs)
    groups = group_keys(keys)
    distinct = keys[first_of_group(groups)]
    lengths = order.shared(distinct // size, distinct % size)
    return SharedUnits(whole, int(lengths @ np.bincount(groups, minlength=len(lengths))))


@dataclass(frozen=True)
class TextGroup:
    """Texts that begin with the same head, as the cells of all columns of one name do."""

    texts: SortedTexts
    ids: Ints  # [texts] cell ids


def text_order(cells: Cells) -> CellOrder:
    """Cells sorted by their text.

    What two cells share is counted in characters. In other units it is an estimate, rather too low: the units that the
    shared characters take up on average in either cell, less one, since the unit at which they part may differ.
    """
    order = order_groups([cells_of_name(cells, name) for name in sorted(set(cells.names), key=quote_name)])
    if cells.unit == "characters":
        return order
    lengths = np.empty_like(cells.id_lengths)
    lengths[order.ranks] = cells.id_lengths
    return replace(order, lengths=lengths, shared=partial(_estimated_units, order.shared, order.lengths, lengths))


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
    firsts = 1 + np.cumsum([0, *[len(group.ids) for group in groups]])
    ranks, lengths = np.zeros(int(firsts[-1]), dtype=np.int64), np.zeros(int(firsts[-1]), dtype=np.int64)
    for group, first in zip(groups, firsts):
        order = group.texts.order
        ranks[group.ids[order]] = first + np.arange(len(order))
        characters = pc.utf8_length(group.texts.texts).to_numpy(zero_copy_only=False)
        lengths[first : first + len(order)] = characters[order]
    return CellOrder(ranks, lengths, partial(_shared_characters, [group.texts for group in groups], firsts))


def _shared_characters(groups: Sequence[SortedTexts], firsts: Ints, left: Ints, right: Ints) -> Ints:
    characters = np.zeros(len(left), dtype=np.int64)
    left_group, right_group = (np.searchsorted(firsts, ranks, side="right") - 1 for ranks in (left, right))
    for number in np.unique(left_group[left_group == right_group]).tolist():
        group = groups[number]
        here = np.flatnonzero((left_group == number) & (right_group == number))
        first, second = (group.order[ranks[here] - firsts[number]] for ranks in (left, right))
        characters[here] = common_prefix_characters(group.texts, first, second, known=group.head)
    apart = np.flatnonzero(left_group != right_group)
    heads = pa.array([group.head for group in groups], TEXT)
    characters[apart] = common_prefix_characters(heads, left_group[apart], right_group[apart])
    return characters


def _estimated_units(
    shared: Callable[[Ints, Ints], Ints], characters: Ints, units: Ints, left: Ints, right: Ints
) -> Ints:
    common = shared(left, right)
    in_units = [common * units[ranks] // characters[ranks] for ranks in (left, right)]
    estimate: Ints = np.maximum(np.minimum(*in_units) - 1, 0)
    return estimate


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

    def shared(left: Ints, right: Ints) -> Ints:
        return common_prefix_tokens(tokens, offsets, example[left], example[right])

    return CellOrder(ranks, np.append(lengths, 0)[example] * (np.arange(len(example)) > 0), shared)
