"""What is asked for, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from specgen.decoding.stats import DecodeStats
from specgen.listening import Continuation, Melody


@dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
        prompt, seed: what to play, and which of all the clips that are that.
        duration: seconds in all; None is the preset's default.
        id: for messages and files.
        continue_from: an audio file that the clip begins with and goes on from.
        melody: an audio file whose melody the clip follows (melody models).
        sections: (seconds, prompt) pairs: what to play from there on.
    """

    prompt: str
    seed: int
    duration: float | None = None
    id: str | None = None
    continue_from: Path | None = None
    melody: Path | None = None
    sections: tuple[tuple[float, str], ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to play, section by section."""
        return (self.prompt, *(text for _, text in self.sections))


@dataclass
class Clip:
    """One clip made.

    Attributes:
        request: what was asked, `duration` filled in.
        codes: `[K, T]` int64 tokens, on the CPU.
        audio: `[C, N]` float32 in [-1, 1], on the CPU.
        sample_rate: of the audio.
        stats: counts of its decode.
        timings: seconds; `decode_seconds` from its entering the batch to its last token, in the
            company of the others there.
        lossless: whether the tokens follow the verifier's own distribution.
        unknown_words: words of the prompt that no model knows.
        continuation, melody: what it goes on from and follows, if it was asked to.
    """

    request: Request
    codes: Tensor
    audio: Tensor
    sample_rate: int
    stats: DecodeStats
    timings: dict[str, float]
    lossless: bool
    unknown_words: list[str] = field(default_factory=list)
    continuation: Continuation | None = None
    melody: Melody | None = None

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / self.sample_rate
