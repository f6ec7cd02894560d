"""Audio on its way out while it is made: WAV or raw samples, to a pipe or a growing file."""

from __future__ import annotations

import struct
import time
from typing import BinaryIO

import numpy as np
from torch import Tensor

_UNKNOWN = 0xFFFFFFFF  # what WAV players read as "until the stream ends"


class WavStreamWriter:
    """Writes 16-bit little-endian samples, channels interleaved, as they come.

    A WAV header is written first with no length in it; where the file can be rewound, `close` fills
    it in.

    Args:
        file: opened for writing.
        sample_rate: of the audio.
        channels: of the audio.
        kind: `wav`, or `raw` for the samples alone.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, kind: str = "wav") -> None:
        self._file, self._kind = file, kind
        self._rate, self._channels = sample_rate, channels
        self._began = time.perf_counter()
        self._bytes = 0
        self.first_audio: float | None = None  # seconds until the first sample went out
        if kind == "wav":
            file.write(self._header(None))
            file.flush()

    def _header(self, length: int | None) -> bytes:
        data = _UNKNOWN if length is None else length
        riff = _UNKNOWN if length is None else length + 36
        frame = 2 * self._channels
        form = struct.pack("<HHIIHH", 1, self._channels, self._rate, self._rate * frame, frame, 16)
        head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
        return head + b"data" + struct.pack("<I", data)

    def write(self, part: Tensor) -> None:
        """Write `[C, n]` float audio in [-1, 1].

        Raises:
            OSError: nobody listens any more, or the disk is full.
        """
        samples = np.clip(part.numpy().T, -1.0, 1.0)
        # As libsndfile does it, so that what is heard is what a file of the clip holds.
        block = np.clip(np.floor(samples * 32768.0), -32768, 32767).astype("<i2").tobytes()
        self._file.write(block)
        self._file.flush()
        self._bytes += len(block)
        if self.first_audio is None:
            self.first_audio = time.perf_counter() - self._began

    def close(self) -> None:
        """Fill in the length, where that can be done."""
        if self._kind == "wav" and self._file.seekable():
            self._file.seek(0)
            self._file.write(self._header(self._bytes))
            self._file.flush()
