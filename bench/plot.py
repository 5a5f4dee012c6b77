# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG text, readable on paper and on dark screens, by themselves and in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 70, 190, 34, 46
HEIGHT = 330
OURS = "#2f86d1"
# Told apart also by the colour-blind (Okabe and Ito), on white and on black.
COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#c99a00", "#7a7a7a", "#8d6fc9", "#4aa3a2", "#a0522d")
DASHES = ("", "6 3", "2 2", "8 3 2 3")
STYLE = (
    "<style>"
    ".plot text{fill:#1a1a1a;font:12px system-ui,sans-serif}"
    ".plot .title{font-weight:600;font-size:14px}"
    ".plot .axis{stroke:#777;fill:none}.plot .grid{stroke:#888;stroke-opacity:.3;fill:none}"
    "@media(prefers-color-scheme:dark){.plot text{fill:#e8e8e8}}"
    "@media print{.plot text{fill:#000}}"
    "</style>"
)
Points = Sequence[Sequence[float]]


def colour_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, dashes) of each; ours in one colour always, its variants dashed."""
    found, ours, others = {}, 0, 0
    for name in names:
        if "ours" in name or name.startswith("attach."):
            found[name] = (OURS, DASHES[ours % len(DASHES)])
            ours += 1
        else:
            rank = others // len(COLOURS)
            found[name] = (COLOURS[others % len(COLOURS)], DASHES[rank % len(DASHES)])
            others += 1
    return found


def short(value: float) -> str:
    """A number for an axis or a bar's end."""
    if value and not 1e-2 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Scale:
    """From values to places along one axis."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool, zero: bool = False
    ) -> None:
        self.log = log and all(value > 0 for value in values)
        low, high = min(values), max(values)
        if self.log:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
            high = high if high > low else low * 10
        else:
            low = 0.0 if zero else low
            high = high * 1.05 if high > low else low + 1
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Where to draw a line: powers of ten, or round steps."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
        begin = math.ceil(self.low / step)
        return [n * step for n in range(begin, math.floor(self.high / step) + 1)]


def wrap(title: str, height: float, parts: Sequence[str]) -> str:
    """The whole picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{escape(title)}">{STYLE}'
        f'<text class="title" x="8" y="18">{escape(title)}</text>{"".join(parts)}</svg>'
    )


def axes(x: Scale, y: Scale, x_name: str, y_name: str) -> list[str]:
    """Grid, ticks and names."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{short(tick)}</text>'
        )
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(
        f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_name)}</text>'
    )
    return parts


def lines(
    title: str, x_name: str, y_name: str, curves: Mapping[str, Points], *, log_x: bool, log_y: bool
) -> str:
    """Curves, each named at the side."""
    points = [point for curve in curves.values() for point in curve]
    x = Scale([point[0] for point in points], LEFT, WIDTH - RIGHT, log=log_x)
    y = Scale([point[1] for point in points], HEIGHT - BOTTOM, TOP, log=log_y, zero=True)
    parts = axes(x, y, x_name, y_name)
    colours = colour_of(list(curves))
    step = min(18.0, (HEIGHT - TOP - 20) / max(1, len(curves)))
    for number, (name, curve) in enumerate(curves.items()):
        colour, dashes = colours[name]
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in curve)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}" fill="none"'
        parts.append(f'<path d="M{path}" {stroke}/>')
        if len(curve) < 20:
            parts += [
                f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
                for at, value in curve
            ]
        place, at = WIDTH - RIGHT + 10, TOP + 10 + number * step
        parts.append(f'<path d="M{place} {at:.1f}h22" {stroke}/>')
        parts.append(f'<text x="{place + 28}" y="{at + 4:.1f}">{escape(name)}</text>')
    return wrap(title, HEIGHT, parts)


def bars(
    title: str, unit: str, rows: Sequence[tuple[str, float, float, float]], *, log: bool = False
) -> str:
    """(name, value, lowest, highest) as lying bars, with a whisker from lowest to highest."""
    height = TOP + len(rows) * 26 + 30
    values = [value for row in rows for value in row[1:]]
    x = Scale(values, 190, WIDTH - 110, log=log, zero=True)
    colours = colour_of([row[0] for row in rows])
    parts = []
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{height - 30}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{height - 14}" text-anchor="middle">{short(tick)}</text>'
        )
    for number, (name, value, low, high) in enumerate(rows):
        at = TOP + number * 26 + 5
        wide = max(1.0, x(value) - 190)
        colour = colours[name][0]
        parts.append(f'<text x="182" y="{at + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="190" y="{at}" width="{wide:.1f}" height="17" fill="{colour}" rx="2"/>'
        )
        parts.append(
            f'<path class="axis" d="M{x(low):.1f} {at + 8.5}H{x(high):.1f}'
            f'M{x(low):.1f} {at + 4}v9M{x(high):.1f} {at + 4}v9"/>'
        )
        beside = max(x(high), 190 + wide) + 6
        parts.append(f'<text x="{beside:.1f}" y="{at + 13}">{short(value)} {escape(unit)}</text>')
    return wrap(title, height, parts)


def clocks(title: str, rows: Sequence[tuple[str, str, str, str]]) -> str:
    """(name, what is done before, what the clock covers, how long that took): the clock's two
    edges are the upright lines."""
    start, end = 372, 670
    height = TOP + 28 + len(rows) * 24 + 10
    colours = colour_of([row[0] for row in rows])
    parts = [
        f'<text x="{start - 8}" y="{TOP + 14}" text-anchor="end">made ahead</text>'
        f'<text x="{start + 8}" y="{TOP + 14}">the clock runs</text>'
        f'<text x="{end + 8}" y="{TOP + 14}">p50</text>'
    ]
    for number, (name, ahead, within, took) in enumerate(rows):
        at = TOP + 28 + number * 24
        parts.append(
            f'<rect x="{start}" y="{at}" width="{end - start}" height="20" '
            f'fill="{colours[name][0]}" fill-opacity=".25"/>'
            f'<text x="8" y="{at + 14}">{escape(name)}</text>'
            f'<text x="{start - 8}" y="{at + 14}" text-anchor="end">{escape(ahead)}</text>'
            f'<text x="{start + 8}" y="{at + 14}">{escape(within)}</text>'
            f'<text x="{end + 8}" y="{at + 14}">{escape(took)}</text>'
        )
    edges = "".join(f"M{x} {TOP + 20}V{height - 6}" for x in (start, end))
    parts.append(f'<path class="axis" stroke-width="2" d="{edges}"/>')
    return wrap(title, height, parts)
