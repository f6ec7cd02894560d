"""The engine: a preset becomes loaded models, requests become clips. This is the Python API.

import specgen

engine = specgen.load("embedded")
for clip in engine.generate([specgen.Request("a lively jig on the fiddle", seed=7)]):
    print(clip.codes.shape, clip.stats.acceptance)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from specgen.checkpoints.native import CodecId, LMCheckpoint, codec_id, load_lm
from specgen.codec.base import Codec
from specgen.codec.embedded import load_codec
from specgen.config import Preset, check_sampling, load_preset
from specgen.decoding.acceptance import Rule, is_biased
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, Progress, capacity, decode, steps_per_frame
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.devices import choose_device, choose_dtype, describe_device, versions
from specgen.errors import UserError
from specgen.lm.model import LMSession
from specgen.settings import Settings

SIDECAR_SCHEMA = 1
_SMALL = 50_000_000  # parameters up to which one CPU thread is fastest (docs/benchmarks.md)


@dataclass(frozen=True)
class Request:
    """One clip to make. `duration` in seconds; None is the preset's default."""

    prompt: str
    seed: int
    duration: float | None = None
    id: str | None = None


@dataclass
class Clip:
    """One clip made.

    Attributes:
        request: what was asked, `duration` filled in.
        codes: `[K, T]` int64 tokens, on the CPU.
        audio: `[C, N]` float32 in [-1, 1], on the CPU.
        sample_rate: of the audio.
        stats: counts of its decode.
        timings: seconds; of the whole batch it was made in, except `load_seconds`.
        lossless: whether the tokens follow the verifier's own distribution.
        unknown_words: words of the prompt that no model knows.
    """

    request: Request
    codes: Tensor
    audio: Tensor
    sample_rate: int
    stats: DecodeStats
    timings: dict[str, float]
    lossless: bool
    unknown_words: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / self.sample_rate


def load(
    preset: str | Preset,
    *,
    device: str = "auto",
    dtype: str | None = None,
    draft: bool = True,
    settings: Settings | None = None,
    threads: int | None = None,
) -> Engine:
    """Load a preset's models.

    Args:
        preset: a name, a path, or a loaded preset.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of both models, overriding the preset.
        draft: False leaves the drafter out.
        settings: overrides the preset's.
        threads: CPU threads; None chooses.

    Raises:
        UserError: anything that keeps the models from being loaded or from fitting each other.
    """
    began = time.perf_counter()
    preset = load_preset(preset) if isinstance(preset, str) else preset
    settings = settings or Settings.of(preset)
    place = choose_device(device)
    node = preset.node
    verifier = load_lm(
        preset.folder(node.verifier.checkpoint),
        place,
        choose_dtype(dtype or node.verifier.dtype, place),
    )
    drafter = None
    if draft and node.drafter is not None:
        drafter = load_lm(
            preset.folder(node.drafter.checkpoint),
            place,
            choose_dtype(dtype or node.drafter.dtype, place),
        )
    folder = preset.folder(node.codec.checkpoint)
    codec = load_codec(folder).to(place)
    _check_together(verifier, drafter, codec_id(folder))
    check_settings(settings, verifier, drafter)
    for model in (verifier, drafter):
        if model is not None:
            model.lm.pack()
    if place.type == "cpu":
        few = max(m.lm.parameter_count() for m in (verifier, drafter) if m is not None) <= _SMALL
        torch.set_num_threads(threads or (1 if few else torch.get_num_threads()))
    engine = Engine(preset, settings, place, verifier, drafter, codec, codec_id(folder).fingerprint)
    engine.load_seconds = time.perf_counter() - began
    return engine


class Engine:
    """Loaded models that make clips. Made by `load`."""

    def __init__(
        self,
        preset: Preset,
        settings: Settings,
        device: torch.device,
        verifier: LMCheckpoint,
        drafter: LMCheckpoint | None,
        codec: Codec,
        codec_sha256: str,
    ) -> None:
        self.preset, self.settings, self.device = preset, settings, device
        self.verifier, self.drafter, self.codec = verifier, drafter, codec
        self.codec_sha256 = codec_sha256
        self.load_seconds = 0.0
        # What a piece of 64 frames shows of the rule holds for any length.
        self.lossless = drafter is None or not is_biased(
            Rule(settings.rule), drafter.pattern.of(64), verifier.pattern.of(64)
        )

    @property
    def max_seconds(self) -> float:
        """The longest clip, by the preset and by every model."""
        models = [m for m in (self.verifier, self.drafter) if m is not None]
        frames = min(m.max_frames for m in models)
        return min(self.preset.node.duration.max, frames / self.codec.frame_rate)

    def frames(self, duration: float) -> int:
        """Frames of a clip of `duration` seconds.

        Raises:
            UserError: no such length can be made.
        """
        if not math.isfinite(duration) or duration <= 0:
            raise UserError(f"duration must be a positive number of seconds, got {duration:g}")
        if duration > self.max_seconds:
            raise UserError(
                f"duration {duration:g} s is beyond the {self.max_seconds:g} s that preset "
                f"{self.preset.name} was made for; ask for at most {self.max_seconds:g}"
            )
        return max(1, round(duration * self.codec.frame_rate))

    def check(self, request: Request) -> Request:
        """The request with its duration filled in.

        Raises:
            UserError: an empty or too long prompt, a duration or seed out of range.
        """
        if not request.prompt.strip():
            raise UserError(
                "the prompt is empty; say what to play, such as 'a slow air on the flute'"
            )
        self.verifier.conditioner.tokenize(request.prompt)
        duration = (
            self.preset.node.duration.default if request.duration is None else request.duration
        )
        if not 0 <= request.seed < 2**63:
            raise UserError(f"seed must lie between 0 and 2^63 - 1, got {request.seed}")
        self.frames(duration)
        return replace(request, duration=duration)

    def generate(
        self,
        requests: Iterable[Request],
        *,
        batch: int = 16,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Iterator[Clip]:
        """Make clips, `batch` at a time. A clip's tokens do not depend on its batch.

        Raises:
            UserError: a request that cannot be met; all are checked before any work is done.
        """
        checked = [self.check(request) for request in requests]
        if self._length_tells:
            batch = 1
        for first in range(0, len(checked), batch):
            yield from self._generate(checked[first : first + batch], on_round)

    @property
    def _length_tells(self) -> bool:
        """Whether clips depend on a draft length that the loop chooses for a whole batch.

        They do under any rule but `coupled`, with an automatic length: decode them one by one.
        """
        settings = self.settings
        return (
            self.drafter is not None
            and settings.draft_frames is None
            and settings.sampling.temperature > 0
            and Rule(settings.rule) is not Rule.COUPLED
        )

    def _generate(
        self, requests: list[Request], on_round: Callable[[Progress], None] | None
    ) -> Iterator[Clip]:
        settings, sampling = self.settings, self.settings.sampling
        frames = [self.frames(r.duration or 0.0) for r in requests]
        began = time.perf_counter()
        prompts = [r.prompt for r in requests]
        verifier = self.role(self.verifier, prompts, max(frames), sampling.cfg)
        drafter = None
        if self.drafter is not None:
            guidance = sampling.cfg if settings.drafter_cfg else None
            drafter = self.role(self.drafter, prompts, max(frames), guidance)
        conditioned = self._now()
        per_frame = steps_per_frame(self.verifier.pattern)
        with torch.inference_mode():
            decoded = decode(
                verifier,
                drafter,
                frames=frames,
                seeds=[r.seed for r in requests],
                sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
                drafting=Drafting(
                    Rule(settings.rule),
                    settings.draft_frames and settings.draft_frames * per_frame,
                    settings.draft_temperatures,
                ),
                on_round=on_round,
            )
        drawn = self._now()
        waves = [self.codec.decode(codes[None])[0].float().cpu() for codes in decoded.codes]
        finished = time.perf_counter()
        audio_seconds = sum(w.shape[-1] for w in waves) / self.codec.sample_rate
        timings = {
            "load_seconds": self.load_seconds,
            "condition_seconds": conditioned - began,
            "decode_seconds": drawn - conditioned,
            "codec_seconds": finished - drawn,
            "audio_seconds_per_second": audio_seconds / (finished - began),
        }
        for request, codes, stats, wave in zip(
            requests, decoded.codes, decoded.stats, waves, strict=True
        ):
            unknown = self.verifier.conditioner.tokenize(request.prompt).unknown
            yield Clip(
                request,
                codes.cpu(),
                wave,
                self.codec.sample_rate,
                stats,
                timings,
                self.lossless,
                unknown,
            )

    def role(
        self, model: LMCheckpoint, prompts: list[str], frames: int, guidance: float | None
    ) -> Role:
        """A model ready to decode `frames` frames for each prompt."""
        with torch.inference_mode():
            condition, mask = model.conditioner.encode(prompts)
            session = LMSession(
                model.lm,
                rows=len(prompts),
                capacity=capacity(model.pattern, frames),
                condition=condition,
                mask=mask,
                null=model.conditioner.null(),
                guidance=guidance,
            )
        return Role(session, model.pattern)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def sidecar(self, clip: Clip) -> dict[str, Any]:
        """What to record beside a clip (design: field names that scripts rely on)."""
        drafter = self.drafter
        return {
            "schema": SIDECAR_SCHEMA,
            "id": clip.request.id,
            "prompt": clip.request.prompt,
            "unknown_words": clip.unknown_words,
            "seed": clip.request.seed,
            "preset": self.preset.reference,
            "preset_sha256": self.preset.sha256,
            "checkpoints": {
                "verifier": self.verifier.sha256,
                "drafter": None if drafter is None else drafter.sha256,
                "codec": self.codec_sha256,
            },
            "sampling": self.settings.as_dict(),
            "duration_seconds": clip.seconds,
            "sample_rate": clip.sample_rate,
            "device": describe_device(self.device),
            "dtype": {
                "verifier": _dtype_name(self.verifier),
                "drafter": None if drafter is None else _dtype_name(drafter),
            },
            "versions": versions(),
            "lossless": clip.lossless,
            "stats": clip.stats.as_dict(),
            "timings": clip.timings,
        }


def _dtype_name(model: LMCheckpoint) -> str:
    return str(model.lm.dtype).removeprefix("torch.")


def _check_together(verifier: LMCheckpoint, drafter: LMCheckpoint | None, codec: CodecId) -> None:
    """Refuse models that do not speak of the same tokens.

    Raises:
        UserError: names what differs.
    """
    models = [("verifier", verifier), ("drafter", drafter)]
    for role, model in models:
        if model is None:
            continue
        for name in ("codebooks", "card", "frame_rate", "sample_rate"):
            ours, theirs = getattr(codec, name), getattr(model.codec, name)
            if ours != theirs:
                raise UserError(
                    f"{role} {model.name} was made for a codec with {name} {theirs}, "
                    f"the preset's has {ours}; choose models of one codec"
                )
        if model.codec.fingerprint and model.codec.fingerprint != codec.fingerprint:
            raise UserError(
                f"{role} {model.name} was trained on the tokens of another codec than the "
                "preset's; choose models of one codec"
            )


def check_settings(
    settings: Settings, verifier: LMCheckpoint, drafter: LMCheckpoint | None
) -> None:
    """Refuse settings that the models cannot follow.

    Raises:
        UserError: values out of range, or a rule that would change the distribution.
    """
    check_sampling(settings.sampling, "sampling")
    K = verifier.pattern.codebooks
    if settings.draft_temperatures and len(settings.draft_temperatures) != K:
        raise UserError(
            f"draft temperatures: {K} are needed, one a codebook, got "
            f"{len(settings.draft_temperatures)}"
        )
    if drafter is None or settings.allow_biased:
        return
    if is_biased(Rule(settings.rule), drafter.pattern.of(64), verifier.pattern.of(64)):
        raise UserError(
            f"rule {settings.rule} changes the music when a {drafter.pattern.kind} model drafts "
            f"for a {verifier.pattern.kind} model (docs/exactness.md); use coupled, mixed or keep, "
            "or add --allow-biased"
        )
