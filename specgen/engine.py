"""The engine: a preset becomes loaded models, requests become clips. This is the Python API.

import specgen

engine = specgen.load("embedded")
for clip in engine.generate([specgen.Request("a lively jig on the fiddle", seed=7)]):
    print(clip.codes.shape, clip.stats.acceptance)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specgen.checkpoints.native import CodecId, LMCheckpoint, codec_id, load_lm
from specgen.codec.base import Codec
from specgen.codec.embedded import load_codec
from specgen.config import Preset, check_sampling, load_preset
from specgen.decoding.acceptance import Rule, is_biased
from specgen.decoding.lane import Role
from specgen.decoding.loop import (
    Drafting,
    Piece,
    Progress,
    capacity,
    decode_pieces,
    steps_per_frame,
)
from specgen.decoding.lossy import Kind, Leniency, Lenient
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.devices import choose_device, choose_dtype, describe_device, versions
from specgen.errors import UserError
from specgen.listening import Continuation, Melody, continuations, melodies, read_audio, read_start
from specgen.lm.chroma import melody_rate, prepends
from specgen.lm.model import LMSession
from specgen.settings import Settings

SIDECAR_SCHEMA = 1
SITTING = 1024  # requests whose conditions are held at a time
_SMALL = 50_000_000  # parameters up to which one CPU thread is fastest (docs/benchmarks.md)


@dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
        prompt, seed: what to play, and which of all the clips that are that.
        duration: seconds in all; None is the preset's default.
        id: for messages and files.
        continue_from: an audio file that the clip begins with and goes on from.
        melody: an audio file whose melody the clip follows (melody models).
    """

    prompt: str
    seed: int
    duration: float | None = None
    id: str | None = None
    continue_from: Path | None = None
    melody: Path | None = None


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


@dataclass(frozen=True)
class Cast:
    """A model in its part, with the conditions of every prompt it will be given.

    Attributes:
        role: for the decode loop.
        session: the model's.
        condition, mask: `[P, L, condition_dim]` and `[P, L]` of P prompts.
    """

    role: Role
    session: LMSession
    condition: Tensor
    mask: Tensor

    def admit(self, row: int, prompt: int) -> None:
        """Let a row follow a prompt."""
        if not row == prompt < self.session.rows:  # the first ones are in their places
            self.session.admit(row, self.condition[prompt], self.mask[prompt])


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

    @property
    def lossless(self) -> bool:
        """Whether clips follow the verifier's own distribution."""
        if self.drafter is None:
            return True
        # What a piece of 64 frames shows of the rule holds for any length.
        drafter, verifier = (m.pattern.of(64) for m in (self.drafter, self.verifier))
        return not self.settings.lossy and not is_biased(
            Rule(self.settings.rule), drafter, verifier
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
            UserError: an empty or too long prompt, a duration or seed out of range, audio that
                cannot be gone on from, a melody that cannot be followed.
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
        if request.continue_from is not None:
            read_start(request.continue_from, self.codec, duration)
        if request.melody is not None:
            read_audio(request.melody, self._melody_rate(), 1)
        return replace(request, duration=duration)

    def generate(
        self,
        requests: Iterable[Request],
        *,
        batch: int = 16,
        in_order: bool = True,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Iterator[Clip]:
        """Make clips, `batch` at a time: where one is done, the next takes its place.

        A clip's tokens do not depend on its batch.

        Args:
            requests: what to make.
            batch: most clips decoded together.
            in_order: yield clips in the order of their requests; False: as they are done.
            on_round: called after every round of the decode loop.

        Raises:
            UserError: a request that cannot be met; all are checked before any work is done.
        """
        checked = [self.check(request) for request in requests]
        for first in range(0, len(checked), SITTING):
            sitting = checked[first : first + SITTING]
            early: dict[int, Clip] = {}
            wanted = 0
            for index, clip in self._sitting(sitting, batch, on_round):
                if not in_order:
                    yield clip
                    continue
                early[index] = clip
                while wanted in early:
                    yield early.pop(wanted)
                    wanted += 1

    def _sitting(
        self, requests: list[Request], batch: int, on_round: Callable[[Progress], None] | None
    ) -> Iterator[tuple[int, Clip]]:
        """Clips as they are done, with the places of their requests."""
        sampling = self.settings.sampling
        began = self._now()
        frames = [self.frames(r.duration or 0.0) for r in requests]
        starts = continuations([r.continue_from for r in requests], self.codec, self.device)
        pieces = [
            Piece(T, r.seed, None if start is None else start.codes)
            for T, r, start in zip(frames, requests, starts, strict=True)
        ]
        prompts = [r.prompt for r in requests]
        longest, rows = max(piece.frames for piece in pieces), min(batch, len(pieces))
        admitted = [self._now()] * len(requests)
        tunes: list[Melody | None] = [None] * len(requests)
        if any(r.melody for r in requests):
            tunes = melodies([r.melody for r in requests], self._melody_rate())
        casts = [self.cast(self.verifier, prompts, longest, sampling.cfg, rows, tunes)]
        if self.drafter is not None:
            guidance = sampling.cfg if self.settings.drafter_cfg else None
            casts.append(self.cast(self.drafter, prompts, longest, guidance, rows, tunes))
        conditioned = self._now()

        def admit(row: int, index: int) -> None:
            admitted[index] = self._now()
            for cast in casts:
                cast.admit(row, index)

        made = decode_pieces(
            casts[0].role,
            casts[1].role if len(casts) > 1 else None,
            pieces,
            rows=rows,
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
            drafting=self.drafting,
            on_admit=admit,
            on_round=on_round,
        )
        while True:
            with torch.inference_mode():  # not around a yield: it would leak to the caller
                piece = next(made, None)
                if piece is None:
                    return
                drawn = self._now()
                wave = self.codec.decode(piece.codes[None])[0].float().cpu()
            request = requests[piece.index]
            seconds = {
                "condition_seconds": conditioned - began,
                "decode_seconds": drawn - admitted[piece.index],
                "codec_seconds": self._now() - drawn,
            }
            pace = wave.shape[-1] / self.codec.sample_rate / sum(seconds.values())
            yield (
                piece.index,
                Clip(
                    request,
                    piece.codes.cpu(),
                    wave,
                    self.codec.sample_rate,
                    piece.stats,
                    {
                        "load_seconds": self.load_seconds,
                        **seconds,
                        "audio_seconds_per_second": pace,
                    },
                    self.lossless,
                    self.verifier.conditioner.tokenize(request.prompt).unknown,
                    starts[piece.index],
                    tunes[piece.index],
                ),
            )

    @property
    def drafting(self) -> Drafting:
        """How the settings say to draft, in the verifier's steps."""
        settings = self.settings
        per_frame = steps_per_frame(self.verifier.pattern)
        return Drafting(
            Rule(settings.rule),
            settings.draft_frames and settings.draft_frames * per_frame,
            settings.draft_temperatures,
            lenient(settings.lossy, self.codec),
        )

    def cast(
        self,
        model: LMCheckpoint,
        prompts: list[str],
        frames: int,
        guidance: float | None,
        rows: int | None = None,
        tunes: Sequence[Melody | None] = (),
    ) -> Cast:
        """A model ready to decode up to `frames` frames for each prompt, `rows` of them at a time
        (None: all), each after its melody if the model follows any."""
        rows = rows or len(prompts)
        with torch.inference_mode():
            waves = [tune and tune.wav for tune in tunes]
            follows = any(tunes) and melody_rate(model.conditioner) is not None
            condition, mask = model.conditioner.encode(prompts, *([waves] if follows else []))
            session = LMSession(
                model.lm,
                rows=rows,
                capacity=capacity(model.pattern, frames),
                condition=condition[:rows],
                mask=mask[:rows],
                null=model.conditioner.null(),
                guidance=guidance,
                prepend=prepends(model.conditioner),
            )
        return Cast(Role(session, model.pattern), session, condition, mask)

    def _melody_rate(self) -> int:
        """Sample rate at which the verifier reads melodies.

        Raises:
            UserError: it follows none.
        """
        rate = melody_rate(self.verifier.conditioner)
        if rate is None:
            raise UserError(
                f"{self.verifier.name} follows no melody: use a preset of a melody model"
            )
        return rate

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def sidecar(self, clip: Clip) -> dict[str, Any]:
        """What to record beside a clip (design: field names that scripts rely on)."""
        drafter, start = self.drafter, clip.continuation
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
            "continue_from": start and start.as_dict(),
            "melody": clip.melody and clip.melody.as_dict(),
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


def lenient(lossy: str, codec: Codec) -> Lenient | None:
    """What `Settings.lossy` lets pass, None for nothing.

    Raises:
        UserError: groups of near codes, but the codec does not show its codebooks.
    """
    if not lossy:
        return None
    leniency = Leniency.of(lossy)
    vectors = getattr(codec, "codebook_vectors", None)
    if leniency.kind is Kind.GROUPS and vectors is None:
        raise UserError(
            f"--lossy {lossy} needs a codec that shows its codebooks; use --lossy typical:0.1"
        )
    return Lenient(leniency, vectors)


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
    if settings.lossy and settings.rule != Rule.COUPLED:
        raise UserError(f"--lossy loosens the coupled rule, not {settings.rule}; leave out --rule")
    if drafter is None or settings.allow_biased:
        return
    if is_biased(Rule(settings.rule), drafter.pattern.of(64), verifier.pattern.of(64)):
        raise UserError(
            f"rule {settings.rule} changes the music when a {drafter.pattern.kind} model drafts "
            f"for a {verifier.pattern.kind} model (docs/exactness.md); use coupled, mixed or keep, "
            "or add --allow-biased"
        )
