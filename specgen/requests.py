"""How clips are made: what a preset says, a command line changes and a sidecar records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from specgen.audio.reading import Continuation, Melody
from specgen.decoding.acceptance import Rule
from specgen.decoding.lossy import Leniency
from specgen.decoding.stats import DecodeStats
from specgen.errors import UserError
from specgen.presets import Preset, SamplingNode, check_sampling, parse_draft_frames


def parse_lossy(text: str) -> str:
    """A lossy mode such as `typical:0.1` or `groups:0.9` in its usual form; "" is none.

    Raises:
        UserError: another kind, or a threshold out of range.
    """
    try:
        return str(Leniency.of(text)) if text else ""
    except ValueError as error:
        raise UserError(f"lossy mode: {error}") from None


@dataclass(frozen=True)
class Settings:
    """How clips are made: a preset's values with what the user changed.

    Attributes:
        sampling: temperature, top-k, top-p and CFG coefficient.
        rule: the accept rule's name.
        draft_frames: draft length, maybe a part of a frame; None for auto.
        draft_temperatures: one a codebook, or empty.
        drafter_cfg: whether the drafter is guided too.
        allow_biased: accept a rule that changes the distribution.
        lossy: what is accepted beyond the coupled rule (`decoding.lossy`); "" is nothing.
    """

    sampling: SamplingNode
    rule: str = "coupled"
    draft_frames: float | None = None
    draft_temperatures: tuple[float, ...] = ()
    drafter_cfg: bool = True
    allow_biased: bool = False
    lossy: str = ""

    @classmethod
    def of(cls, preset: Preset) -> Settings:
        """The preset's own settings."""
        speculation = preset.node.speculation
        return cls(
            replace(preset.node.sampling),
            speculation.rule,
            parse_draft_frames(speculation.draft_frames, preset.name),
            tuple(speculation.draft_temperatures),
            preset.drafter.cfg if preset.drafter else True,
        )

    def as_dict(self) -> dict[str, Any]:
        """For sidecars: what with the seed decides the tokens."""
        sampling = self.sampling
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "cfg": sampling.cfg,
            "rule": self.rule,
            "draft_frames": "auto" if self.draft_frames is None else self.draft_frames,
            "draft_temperatures": list(self.draft_temperatures),
            "drafter_cfg": self.drafter_cfg,
            "lossy": self.lossy or None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `as_dict`.

        Raises:
            UserError: missing or wrong values.
        """
        try:
            sampling = SamplingNode(
                float(values["temperature"]),
                int(values["top_k"]),
                float(values["top_p"]),
                float(values["cfg"]),
            )
            check_sampling(sampling, "sampling")
            return cls(
                sampling,
                Rule(values["rule"]).value,
                parse_draft_frames(values["draft_frames"], "sampling.draft_frames"),
                tuple(map(float, values["draft_temperatures"])),
                bool(values["drafter_cfg"]),
                lossy=parse_lossy(values.get("lossy") or ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the sidecar's sampling cannot be read: {error!r}; it is damaged"
            ) from None


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
