"""Grouped bars as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

BAR, GAP, LEFT, SCALE, TOP = 14, 12, 170, 5, 48  # pixels; SCALE for each percent
COLOURS = ("#bdbdbd", "#969696", "#9ecae1", "#fdae6b", "#31a354", "#006d2c", "#756bb1")


def bar_chart(title: str, rates: Mapping[str, Mapping[str, float]]) -> str:
    """One group for each name, one bar for each of its entries, in percent."""
    names = list(dict.fromkeys(name for group in rates.values() for name in group))
    parts, y = [_text(8, 18, title)], TOP
    for place, name in enumerate(names):
        x = LEFT + place * 90
        parts += [_bar(x, 28, 10, 10, place, name), _text(x + 14, 37, name)]
    for group, bars in rates.items():
        parts.append(_text(8, y + BAR, group))
        for name, rate in bars.items():
            parts += [_bar(LEFT, y, rate * SCALE, BAR - 2, names.index(name), f"{group}, {name}: {rate:.1f} %")]
            parts.append(_text(LEFT + rate * SCALE + 4, y + BAR - 3, f"{rate:.1f}"))
            y += BAR
        y += GAP
    width = LEFT + max(100 * SCALE + 50, 90 * len(names))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}"'
    return "\n".join([head + ' font-family="sans-serif" font-size="11">', *parts, "</svg>\n"])


def _bar(x: float, y: float, width: float, height: float, colour: int, title: str) -> str:
    fill = COLOURS[colour % len(COLOURS)]
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{fill}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}">{escape(text)}</text>'
