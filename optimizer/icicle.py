"""The prefix tree as an icicle chart: who shares what, at a glance."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np

from .cells import Cells
from .errors import OptimizerError
from .ordering import Ordering
from .prefix_tree import prompt_sequences, walk

ROW_HEIGHT = 22
CHARACTER_WIDTH = 7
MIN_WIDTH = 1.0  # narrower nodes are left out; so the chart of a million rows stays small
MAX_TEXT = 200
COLOURS = ("#8dd3c7", "#ffffb3", "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#d9d9d9", "#ccebc5")


def icicle(cells: Cells, ordering: Ordering, *, width: int = 960) -> str:
    """A self-contained SVG of the prefix tree that the ordering makes.

    Each box is a cell that two or more rows share as part of their prefix: as wide as they are many, below the cells
    before it, in the colour of its column. Raises OptimizerError when the ordering belongs to a table of another shape.
    """
    if ordering.fields.shape != (cells.num_rows, cells.num_columns):
        raise OptimizerError(
            f"the ordering is for {ordering.fields.shape} rows and columns, the cells have {cells.codes.shape}"
        )
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    scale = width / max(cells.num_rows, 1)
    boxes, depth = [], 0
    for level in walk(sequences):
        starts = np.flatnonzero(level.starts)
        counts = np.diff(starts, append=len(level.rows))
        ids = sequences[level.rows[starts], level.depth]
        drawn = (counts > 1) & (ids > 0) & (counts * scale >= MIN_WIDTH)
        for start, count, cell in zip(starts[drawn], counts[drawn], ids[drawn]):
            depth = level.depth + 1
            boxes.append(_box(cells, int(cell), level.positions[start] * scale, level.depth, count * scale, int(count)))
    height = (depth + 1) * ROW_HEIGHT
    stats = ordering.stats
    title = f"{stats.num_rows:,} rows, {stats.hit_rate:.1%} of {stats.units:,} {stats.unit} shared ({stats.chosen})"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">',
            f'<text x="2" y="{ROW_HEIGHT - 7}">{escape(title)}</text>',
            *boxes,
            "</svg>",
        ]
    )


def _box(cells: Cells, cell: int, x: float, depth: int, width: float, rows: int) -> str:
    column = int(np.searchsorted(cells.offsets, cell, side="right")) - 1
    text = _printable(cells.id_texts[cell].as_py().removesuffix(",\n"))
    y = (depth + 1) * ROW_HEIGHT
    label = ""
    if width > 4 * CHARACTER_WIDTH:
        fits = text[: int((width - 4) / CHARACTER_WIDTH)]
        label = f'<text x="{x + 2:.1f}" y="{y + ROW_HEIGHT - 7}">{escape(fits)}</text>'
    return (
        f'<g><title>{rows:,} rows: {escape(text[:MAX_TEXT])}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" '
        f'height="{ROW_HEIGHT - 1}" fill="{COLOURS[column % len(COLOURS)]}"/>{label}</g>'
    )


def _printable(text: str) -> str:
    """The text without characters that XML does not allow."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[: 2 * MAX_TEXT])
