"""Prompt bodies as the engine would see them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .cells import Cells, as_cells
from .errors import OptimizerError
from .literals import TEXT
from .ordering import Ordering
from .prefix_tree import prompt_sequences
from .unordered import arrange_items


def render(table: pa.Table | Cells, ordering: Ordering) -> list[str]:
    """The text of every shown row: its cells, in the ordering's field order, NULL cells left out.

    Raises OptimizerError when the ordering belongs to a table of another shape.
    """
    if ordering.items:
        if isinstance(table, Cells):
            raise OptimizerError("the ordering moves items of lists; render the table itself, not its cells")
        table = arrange_items(table, ordering)
    cells = as_cells(table)
    shape = (cells.num_rows, cells.num_columns)
    if ordering.fields.shape != shape:
        raise OptimizerError(f"the ordering is for {ordering.fields.shape} rows and columns, the table has {shape}")
    if 0 in shape:
        return [""] * cells.num_rows
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    columns = [cells.id_texts.take(pa.array(sequences[:, place])) for place in range(cells.num_columns)]
    bodies: list[str] = pc.binary_join_element_wise(*columns, pa.scalar("", TEXT)).to_pylist()
    return bodies
