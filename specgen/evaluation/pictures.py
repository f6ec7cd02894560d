"""Pictures and sounds for a page that needs nothing else: data URIs."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.evaluation.musicnn import mel_filters

# Seven points of viridis (matplotlib, CC0): dark is silent, bright is loud.
_COLOURS = np.array(
    [
        (68, 1, 84),
        (69, 55, 129),
        (51, 99, 141),
        (33, 144, 140),
        (53, 183, 121),
        (143, 215, 68),
        (253, 231, 37),
    ],
    np.float64,
)
_DIFFERENT = (230, 97, 1, 255)
_SAME = (128, 128, 128, 60)
_BANDS, _RANGE_DB = 80, 70.0
# The first that this build of libsndfile can write; every browser plays the first.
_SOUNDS = (("MP3", "audio/mpeg"), ("OGG", "audio/ogg"), ("WAV", "audio/wav"))


def png(pixels: NDArray[np.uint8]) -> str:
    """`[height, width, 3 or 4]` as the data URI of a PNG (RFC 2083)."""
    height, width, channels = pixels.shape
    kind = {3: 2, 4: 6}[channels]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _coloured(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values from 0 to 1 as colours `[..., 3]`."""
    place = values.clip(0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    part = (place - low)[..., None]
    mixed = _COLOURS[low] * (1 - part) + _COLOURS[low + 1] * part
    colours: NDArray[np.uint8] = mixed.astype(np.uint8)
    return colours


def spectrogram(wave: NDArray[Any], rate: int, columns: int = 360) -> str:
    """`[N]` mono samples as a mel spectrogram of the loudest 70 dB, low notes at the bottom."""
    window = 1024
    wave = np.asarray(wave, np.float32)
    hop = max(len(wave) // columns, 64)
    spectrum = torch.stft(
        torch.from_numpy(wave),
        window,
        hop,
        window=torch.hann_window(window),
        pad_mode="constant",
        return_complex=True,
    )
    power = (mel_filters(_BANDS, window, rate) @ spectrum.abs().square()).numpy()
    level = 10 * np.log10(power + 1e-10)
    top = max(float(level.max()), -60.0)
    shown = np.round((level - top) / _RANGE_DB * 48) / 48 + 1  # few colours make a small file
    return png(_coloured(shown[::-1].astype(np.float64)))


def token_map(codes: NDArray[Any], card: int) -> str:
    """`[K, T]` tokens, each entry of a codebook in a colour of its own."""
    scattered = (codes.astype(np.int64) * 7919 % card) / card
    return png(_coloured(np.round(scattered * 24) / 24))


def difference_map(a: NDArray[Any], b: NDArray[Any]) -> str:
    """Two `[K, T]` grids: what differs is orange, what is the same is a faint grey."""
    pixels = np.where((a != b)[..., None], _DIFFERENT, _SAME)
    return png(pixels.astype(np.uint8))


def sound(wave: NDArray[Any], rate: int) -> str:
    """`[N]` mono samples as the data URI of a compressed file."""
    import soundfile

    known = soundfile.available_formats()
    name, mime = next(pair for pair in _SOUNDS if pair[0] in known)
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), rate, format=name)
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"


WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 30, 44
_CURVE_COLOURS = 6


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
        parts += _drawn(line, i % _CURVE_COLOURS, axes)
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
