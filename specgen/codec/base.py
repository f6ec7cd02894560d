"""What every codec offers to the rest of the program: tokens to waveform and back."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Codec(Protocol):
    """A neural audio codec: one column of `codebooks` tokens a frame.

    `frame_rate` is in frames a second, `sample_rate` in hertz; a token is in `[0, card)`.
    """

    @property
    def sample_rate(self) -> int: ...

    @property
    def frame_rate(self) -> float: ...

    @property
    def codebooks(self) -> int: ...

    @property
    def card(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def encode(self, wav: Tensor) -> Tensor:
        """`wav [B, C, N]` float32 in [-1, 1] to `codes [B, K, T]` int64."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """`codes [B, K, T]` int64 to `wav [B, C, N]` float32."""
        ...


class DecodeStream(Protocol):
    """A piece that is decoded while it grows; codecs that can offer it as `stream()`."""

    def push(self, codes: Tensor) -> Tensor:
        """More tokens `[1, K, n]`, in order; returns the audio `[1, C, m]` they make possible."""
        ...

    def finish(self) -> Tensor:
        """The rest of the audio, `[1, C, m]`."""
        ...
