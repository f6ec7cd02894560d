"""EnCodec's decoder on a piece that grows: what it gives is what the whole piece gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specgen.codec.encodec import EncodecCodec


class EncodecStream:
    """One batch of pieces, decoded while it grows; a `specgen.codec.base.DecodeStream`.

    There is no seam. The LSTM looks back only, so its state is carried. The convolutions before and
    after it look both ways: they run with as many frames more on each side as they reach, and what
    those reach of the unknown future waits for the next push (9 frames at 32 kHz, 0.2 s).
    """

    def __init__(self, codec: EncodecCodec) -> None:
        self._codec = codec
        self._reach = codec.config.kernel - 1  # of the convolution before the LSTM, in frames
        self._state: tuple[Tensor, Tensor] | None = None
        self._codes: Tensor | None = None  # [rows, K, n] from frame `_first` on
        self._held: Tensor | None = None  # [rows, width, n] out of the LSTM, from `_low` on
        self._first = self._low = 0
        self._known = 0  # frames through the LSTM
        self._done = 0  # frames given

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor:
        """More tokens `[B, K, n]`, in order; returns the audio `[B, C, m]` they make possible."""
        rows = self._codec.split(codes)
        self._codes = rows if self._codes is None else torch.cat([self._codes, rows], dim=-1)
        return self._advance(last=False)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The rest of the audio, `[B, C, m]`."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> Tensor:
        if self._codes is None:
            return torch.zeros(1, self._codec.channels, 0)
        total = self._first + self._codes.shape[-1]
        self._remember(total if last else total - self._reach)
        ready = self._known if last else self._known - self._codec.margin
        if self._held is None or ready <= self._done:
            return self._codes.new_zeros(
                len(self._codes) // self._codec.streams,
                self._codec.channels,
                0,
                dtype=torch.float32,
            )
        x = self._held
        for layer in self._codec.network.decoder.layers[2:]:
            x = layer(x)
        size = self._codec.frame_size
        x = x[..., (self._done - self._low) * size : (ready - self._low) * size]
        self._done, keep = ready, max(0, ready - self._codec.margin)
        self._held, self._low = self._held[..., keep - self._low :], keep
        return x.reshape(-1, self._codec.channels, x.shape[-1])

    def _remember(self, upto: int) -> None:
        """Run the first convolution and the LSTM up to a frame."""
        if upto <= self._known:
            return
        assert self._codes is not None
        convolution, recurrent = self._codec.network.decoder.layers[:2]
        start = max(0, self._known - self._reach)
        x = convolution(self._codec.latents(self._codes[..., start - self._first :]))
        steps = x[..., self._known - start : upto - start].permute(2, 0, 1)
        out, self._state = recurrent.lstm(steps, self._state)
        x = (out + steps).permute(1, 2, 0)
        self._held = x if self._held is None else torch.cat([self._held, x], dim=-1)
        keep = max(0, upto - self._reach)
        self._codes, self._first = self._codes[..., keep - self._first :], keep
        self._known = upto
