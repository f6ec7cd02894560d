"""Pictures and sounds for a page that needs nothing else: data URIs."""

from __future__ import annotations

import base64
import io
import struct
import zlib
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
