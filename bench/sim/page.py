# SPDX-License-Identifier: Apache-2.0
"""One page with plots, whole in itself: SVG in HTML, both axes by powers of ten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = {"script": "#b3261e", "pooled": "#a36a00", "ours": "#0b6e4f"}
WIDTH, HEIGHT, LEFT, BOTTOM = 620, 340, 70, 40
Series = Mapping[str, Sequence[tuple[float, float]]]  # name -> (x, y), y above 0


def plot(title: str, across: str, up: str, series: Series) -> str:
    """An SVG. Points that are not above 0 have no place on it and are left out."""
    drawn = {
        name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in series.items()
    }
    every = [point for points in drawn.values() for point in points]
    if not every:
        return f"<p>{escape(title)}: nothing to show</p>"
    x_low, x_high = _decades(x for x, _ in every)
    y_low, y_high = _decades(y for _, y in every)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - 20),
            (HEIGHT - BOTTOM) - (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - 30),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    parts.append(f'<text x="{LEFT}" y="18" class="title">{escape(title)}</text>')
    for power in range(x_low, x_high + 1):
        x, _ = place(10.0**power, 10.0**y_low)
        parts.append(
            f'<path class="grid" d="M{x:.1f} 30V{HEIGHT - BOTTOM}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{10**power:,}</text>'
        )
    for power in range(y_low, y_high + 1):
        _, y = place(10.0**x_low, 10.0**power)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - 20}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_seconds(power)}</text>'
        )
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS.get(name.split()[0], "#444")
        placed = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dash = ' stroke-dasharray="5 4"' if name.endswith("measured") else ""
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{LEFT + 8}" y="{44 + 15 * number}" fill="{colour}">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 6}" text-anchor="end">{escape(across)}</text>'
        f'<text x="4" y="18">{escape(up)}</text></svg>'
    )
    return "\n".join(parts)


def page(title: str, plots: Sequence[str], tables: Sequence[str], notes: Sequence[str]) -> str:
    """The HTML of all of them."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title>",
            "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;"
            "padding:0 1rem}svg{width:100%;font-size:12px}.title{font-weight:600}"
            ".grid{stroke:#8884}polyline{stroke-width:2}pre{overflow-x:auto;font-size:12px}</style>",
            f"</head><body><h1>{escape(title)}</h1>",
            *plots,
            *(f"<pre>{escape(table)}</pre>" for table in tables),
            "<ul>",
            *(f"<li>{escape(note)}</li>" for note in notes),
            "</ul></body></html>",
            "",
        ]
    )


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return low, max(high, low + 1)


def _seconds(power: int) -> str:
    """A power of ten in seconds, as people say it."""
    if power < -3:
        return f"{10 ** (power + 6):,} us"
    return f"{10 ** (power + 3):,} ms" if power < 0 else f"{10**power:,} s"
