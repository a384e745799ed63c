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
MAX_BOXES = 4_000  # the outermost are drawn
MAX_TEXT = 200
COLOURS = ("#8dd3c7", "#ffffb3", "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#d9d9d9", "#ccebc5")


def icicle(cells: Cells, ordering: Ordering, *, width: int = 960) -> str:
    """A self-contained SVG of the prefix tree that the ordering makes.

    Each box is a cell that two or more rows share as part of their prefix: as wide as they are many, below the cells
    before it, in the colour of its column. Its tooltip says what it saves. All boxes together save the `hit_units` of
    the ordering without a capacity; the last line says what those save that are too narrow or too many to be drawn.
    Raises OptimizerError when the ordering belongs to a table of another shape.
    """
    if ordering.fields.shape != (cells.num_rows, cells.num_columns):
        raise OptimizerError(
            f"the ordering is for {ordering.fields.shape} rows and columns, the cells have {cells.codes.shape}"
        )
    sequences = prompt_sequences(cells.select_rows(ordering.rows), ordering.fields)
    scale = width / max(cells.num_rows, 1)
    boxes: list[str] = []
    depth = left_out = units_left_out = 0
    for level in walk(sequences):
        starts = np.flatnonzero(level.starts)
        counts = np.diff(starts, append=len(level.rows))
        ids = sequences[level.rows[starts], level.depth]
        shared = np.flatnonzero((counts > 1) & (ids > 0))
        saved = (counts[shared] - 1) * cells.id_lengths[ids[shared]]
        wide = counts[shared] * scale >= MIN_WIDTH
        drawn = wide & (np.cumsum(wide) <= MAX_BOXES - len(boxes))
        left_out += int(np.count_nonzero(~drawn))
        units_left_out += int(saved[~drawn].sum())
        for node, units in zip(shared[drawn].tolist(), saved[drawn].tolist()):
            depth = level.depth + 1
            rows = int(counts[node])
            x = float(level.positions[starts[node]] * scale)
            boxes.append(_box(cells, int(ids[node]), x, level.depth, rows * scale, f"{rows:,} rows save {units:,}"))
    stats = ordering.stats
    title = f"{stats.num_rows:,} rows, {stats.hit_rate:.1%} of {stats.units:,} {stats.unit} shared ({stats.chosen})"
    if left_out:
        boxes.append(_line(depth + 1, f"{left_out:,} smaller boxes, which save {units_left_out:,}, are not drawn"))
    height = (depth + 1 + bool(left_out)) * ROW_HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">',
            _line(0, title),
            *boxes,
            "</svg>",
        ]
    )


def _line(depth: int, text: str) -> str:
    return f'<text x="2" y="{(depth + 1) * ROW_HEIGHT - 7}">{escape(text)}</text>'


def _box(cells: Cells, cell: int, x: float, depth: int, width: float, caption: str) -> str:
    column = int(np.searchsorted(cells.offsets, cell, side="right")) - 1
    text = _printable(cells.id_texts[cell].as_py().removesuffix(",\n"))
    y = (depth + 1) * ROW_HEIGHT
    label = ""
    if width > 4 * CHARACTER_WIDTH:
        fits = text[: int((width - 4) / CHARACTER_WIDTH)]
        label = f'<text x="{x + 2:.1f}" y="{y + ROW_HEIGHT - 7}">{escape(fits)}</text>'
    return (
        f'<g><title>{caption} {cells.unit}: {escape(text[:MAX_TEXT])}</title><rect x="{x:.1f}" y="{y}" '
        f'width="{width:.1f}" height="{ROW_HEIGHT - 1}" fill="{COLOURS[column % len(COLOURS)]}"/>{label}</g>'
    )


def _printable(text: str) -> str:
    """The text without characters that XML does not allow."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[: 2 * MAX_TEXT])
