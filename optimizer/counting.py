"""What rows share as prefixes when they are shown with given fields, a batch of rows at a time."""

from __future__ import annotations

import numpy as np

from .cell_order import CellOrder, SharedUnits, shared_in_order
from .cells import Cells
from .fixed import Fields
from .grouping import Indices, runs, stable_order

BATCH_ROWS = 100_000  # walked together; what is sorted then stays in a processor's cache


def count_shared(cells: Cells, fields: Fields, order: CellOrder) -> tuple[SharedUnits, Indices]:
    """What an unbounded cache finds of all rows, counted exactly, and the depth-first order of the rows, [rows].

    Rows that begin with different cells share no whole cell. So they are sorted by their first cell, and the prefix
    tree is walked for as many of these nodes at a time as fit into a batch; a node that does not is taken apart in the
    same way. `order` is that of `text_order`.
    """
    whole = partial = 0
    prompts = order.prompts(cells, fields)
    rows = np.arange(cells.num_rows, dtype=np.int32)
    nodes = [(0, cells.num_rows, 0)]  # first and last place in `rows` of rows that share their cells up to a depth
    while nodes:
        start, end, depth = nodes.pop()
        batches = [(start, end)]
        if end - start > BATCH_ROWS and depth < cells.num_columns:
            ranks = prompts.at(rows[start:end], depth)
            by_rank = stable_order(ranks, prompts.size)
            rows[start:end], ranks = rows[start:end][by_rank], ranks[by_rank]
            batches = [(start + first, start + last) for first, last in runs(ranks, BATCH_ROWS)]
            # what the last node of one batch shares with the first of the next
            firsts = np.array([first - start for first, _ in batches[1:]], dtype=np.int64)
            firsts = firsts[ranks[firsts - 1] > 0]
            partial += int(order.shared(ranks[firsts - 1], ranks[firsts]).sum())
        for first, last in batches:
            if last - first > BATCH_ROWS and depth < cells.num_columns:
                whole += int(order.lengths[ranks[first - start]]) * (last - first - 1)
                nodes.append((first, last, depth + 1))
                continue
            shared, rows[first:last] = shared_in_order(prompts, order, rows[first:last], depth)
            whole, partial = whole + shared.whole, partial + shared.partial
    return SharedUnits(whole, partial), rows
