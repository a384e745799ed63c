"""Rows as sequences of pieces: whole cells, and lists cut into their begin, their items and their end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .cell_order import CellOrder, TextGroup, cells_of_name, order_groups
from .cells import Cells
from .grouping import AnyInts, Ints
from .literals import TEXT, join, quote_name, text
from .sorted_texts import SortedTexts
from .unordered import ItemLists


@dataclass(frozen=True)
class _ListRanks:
    begin: int  # the name and a bracket
    first: Ints  # [items + 1] by item id, at the begin of the list
    later: Ints  # [items + 1] behind another item, with a separator
    end: int  # a bracket and the end of the cell


@dataclass(frozen=True)
class Pieces:
    """The pieces of a table with list columns by rank, which is 0 where there is none; made by `cut_pieces`."""

    cells: Cells
    order: CellOrder  # of the pieces
    cell_ranks: AnyInts  # [global cell ids] for the columns that are not lists
    list_ranks: Mapping[int, _ListRanks]  # by column

    def sequences(self, fields: Ints, item_ids: Mapping[int, Ints]) -> tuple[Ints, Ints]:
        """Ranks of the pieces of each row in prompt order, [rows, pieces], and how many each of its fields has.

        `fields` is [rows, columns] for each table row, of all or the same few columns; the numbers of pieces are in
        that order, 0 for NULL. `item_ids` are by column [rows, most items], 0 where a list has ended.
        """
        columns = sorted(fields[0].tolist()) if len(fields) else []
        blocks = {column: self._block(column, item_ids.get(column)) for column in columns}
        counts = np.zeros((len(fields), self.cells.num_columns), dtype=np.int64)
        for column, block in blocks.items():
            counts[:, column] = (block > 0).sum(axis=1)
        in_order = np.take_along_axis(counts, fields, axis=1)
        starts = np.zeros_like(counts)
        np.put_along_axis(starts, fields, np.cumsum(in_order, axis=1) - in_order, axis=1)
        sequences = np.zeros((len(fields), int(counts.sum(axis=1).max(initial=0))), dtype=np.int64)
        for column, block in blocks.items():
            rows, places = np.nonzero(block)
            sequences[rows, starts[rows, column] + places] = block[rows, places]
        return sequences, in_order

    def _block(self, column: int, item_ids: Ints | None) -> AnyInts:
        """The pieces of one column, [rows, most pieces]."""
        codes = self.cells.codes[:, column]
        if item_ids is None:
            return self.cell_ranks[np.where(codes < 0, 0, codes + self.cells.offsets[column])][:, None]
        ranks = self.list_ranks[column]
        width = item_ids.shape[1]
        block = np.zeros((len(codes), width + 2), dtype=np.int64)
        block[:, 0] = ranks.begin
        block[:, 1 : min(width, 1) + 1] = ranks.first[item_ids[:, :1]]
        block[:, 2 : width + 1] = ranks.later[item_ids[:, 1:]]
        np.put_along_axis(block, 1 + (item_ids > 0).sum(axis=1)[:, None], ranks.end, axis=1)
        block[codes < 0] = 0
        return block


def cut_pieces(cells: Cells, lists: Mapping[int, ItemLists]) -> Pieces:
    """The pieces of encoded cells, some of whose columns are lists."""
    groups: list[TextGroup] = []

    def add(head: str, texts: pa.Array) -> Ints:
        return add_sorted(SortedTexts(texts, head))

    def add_sorted(texts: SortedTexts) -> Ints:
        first = 1 + sum(len(group.ids) for group in groups)
        groups.append(TextGroup(texts, first + np.arange(len(texts.texts))))
        return groups[-1].ids

    cell_pieces = np.zeros(len(cells.id_lengths), dtype=np.int64)
    begins: dict[str, Ints] = {}
    # what a field may begin with is sorted by name; what stands inside of lists never meets it in a node
    for name in sorted(set(cells.names), key=quote_name):
        if cells.names.index(name) in lists:
            begin = quote_name(name) + ": ["
            begins[name] = add(begin, pa.array([begin], TEXT))
        else:
            group = cells_of_name(cells, name)
            cell_pieces[group.ids] = add_sorted(group.texts)
    inside = {
        column: (add("", items.texts), add(", ", join(text(", "), items.texts)), add("],\n", pa.array(["],\n"], TEXT)))
        for column, items in lists.items()
    }
    order = order_groups(groups)
    ranks = {
        column: _ListRanks(
            begin=int(order.ranks[begins[cells.names[column]]][0]),
            first=np.append(0, order.ranks[first]),
            later=np.append(0, order.ranks[later]),
            end=int(order.ranks[end][0]),
        )
        for column, (first, later, end) in inside.items()
    }
    return Pieces(cells, order, order.ranks[cell_pieces], ranks)
