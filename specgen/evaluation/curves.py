"""Curves as SVG; colours come from the page around them, so that it may be light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 30, 44
_COLOURS = 6


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: for the key.
        points: (x, y) in order.
        intervals: ends of an interval of every y, or ().
        labels: of the points, or ().
    """

    name: str
    points: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float], ...] = ()
    labels: tuple[str, ...] = ()


class _Axes:
    """Where values lie on the paper."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x, self.y = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def across(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[-1] - self.x[0])
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def down(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[-1] - self.y[0])
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def svg(self, x_label: str, y_label: str) -> list[str]:
        parts = []
        for y in self.y:
            level = self.down(y)
            parts.append(f'<path class="grid" d="M{_LEFT} {level}H{WIDTH - _RIGHT}"/>')
            parts.append(_text(_LEFT - 6, level + 4, f"{y:g}", "end"))
        under = HEIGHT - _BOTTOM + 18
        parts += [_text(self.across(x), under, f"{x:g}", "middle") for x in self.x]
        parts.append(_text((_LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"))
        return [*parts, _text(_LEFT, 16, y_label, "start")]


def curves(
    lines: Sequence[Line], x_label: str, y_label: str, *, y_from: float | None = None
) -> str:
    """The curves with axes; `y_from` is a value that the y axis must reach down to."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [end for line in lines for span in line.intervals for end in span]
    axes = _Axes(xs, ys if y_from is None else [*ys, y_from])
    parts = axes.svg(x_label, y_label)
    for i, line in enumerate(lines):
        parts += _drawn(line, i % _COLOURS, axes)
    label = escape(f"{y_label} over {x_label}")
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'


def _drawn(line: Line, colour: int, axes: _Axes) -> list[str]:
    path = " ".join(f"{axes.across(x)},{axes.down(y)}" for x, y in line.points)
    parts = [f'<polyline class="line c{colour}" points="{path}"/>']
    for (x, _), (low, high) in zip(line.points, line.intervals, strict=False):
        way = f"M{axes.across(x)} {axes.down(low)}V{axes.down(high)}"
        parts.append(f'<path class="line thin c{colour}" d="{way}"/>')
    for x, y in line.points:
        place = f'cx="{axes.across(x)}" cy="{axes.down(y)}"'
        parts.append(f'<circle class="dot c{colour}" {place} r="3"/>')
    for (x, y), label in zip(line.points, line.labels, strict=False):
        parts.append(_text(axes.across(x) + 5, axes.down(y) - 6, label, "start", "small"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that span a range, about five."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    unit = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if (high - low) / (unit * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
