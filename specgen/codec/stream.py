"""Hearing a piece while it is made: tokens go in as they are settled, audio follows behind them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class WindowedStream:
    """Decodes a growing piece with a codec whose output reaches `margin` frames to either side.

    Every sample that comes out has seen all that reaches it, so the parts together are what one
    decode of the whole gives; audio follows the tokens `margin` frames behind.

    Args:
        decode: `[1, K, T]` codes to `[1, C, T * frame_size]` audio.
        frame_size: samples a frame.
        margin: frames.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], frame_size: int, margin: int) -> None:
        self._decode, self._size, self.margin = decode, frame_size, margin
        self._held: Tensor | None = None  # codes from frame `_low` on
        self._low = self._out = 0  # frames dropped, and frames given out

    def push(self, codes: Tensor) -> Tensor:
        """More tokens `[1, K, n]`, in order; returns the audio `[1, C, m]` they make possible."""
        self._held = codes if self._held is None else torch.cat([self._held, codes], dim=-1)
        return self._give(self._low + self._held.shape[-1] - self.margin)

    def finish(self) -> Tensor:
        """The rest of the audio, `[1, C, m]`."""
        if self._held is None:
            raise ValueError("nothing was pushed")
        return self._give(self._low + self._held.shape[-1])

    def _give(self, end: int) -> Tensor:
        assert self._held is not None
        if end <= self._out:
            return self._decode(self._held[..., :1])[..., :0]
        wave = self._decode(self._held)
        part = wave[..., (self._out - self._low) * self._size : (end - self._low) * self._size]
        self._out = end
        keep = max(self._low, end - self.margin)
        self._held, self._low = self._held[..., keep - self._low :], keep
        return part
