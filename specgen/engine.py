"""The engine: a preset becomes loaded models, requests become clips. This is the Python API.

import specgen

engine = specgen.load("embedded")
for clip in engine.generate([specgen.Request("a lively jig on the fiddle", seed=7)]):
    print(clip.codes.shape, clip.stats.acceptance)
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specgen.audio.reading import read_audio, read_start
from specgen.checkpoints.base import LMCheckpoint
from specgen.checkpoints.pairing import check_together, load_models
from specgen.checkpoints.registry import load_codec
from specgen.codec.base import Codec
from specgen.decoding.acceptance import Rule, is_biased
from specgen.decoding.draft_length import Learnt
from specgen.decoding.loop import Drafting, Progress, draft_steps
from specgen.decoding.lossy import Kind, Leniency, Lenient
from specgen.devices import choose_device, choose_dtype, choose_threads, describe_device, versions
from specgen.errors import UserError
from specgen.generation import GenerationRun, Window, windows
from specgen.lm.chroma import melody_rate as rate_of
from specgen.lm.compiled import check_compiler
from specgen.lm.quantized import check_kind
from specgen.presets import Preset, VerifierNode, check_sampling, load_preset, parse_quantize
from specgen.requests import Clip, Request, Settings

__all__ = ["Clip", "Engine", "Request", "load"]

SIDECAR_SCHEMA = 1
MAX_REQUESTS_A_RUN = 1024  # requests whose conditions are held at a time
LONGEST = 3600.0  # seconds of the longest piece


def load(
    preset: str | Preset,
    *,
    device: str = "auto",
    dtype: str | None = None,
    draft: bool = True,
    settings: Settings | None = None,
    threads: int | None = None,
    quantize: str | None = None,
    compile: bool = False,
) -> Engine:
    """Load a preset's models.

    Args:
        preset: a name, a path, or a loaded preset.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of both models, overriding the preset.
        draft: False leaves the drafter out.
        settings: overrides the preset's.
        threads: CPU threads; None chooses.
        quantize: of the models' weights, overriding the preset: `drafter=int8`.
        compile: compile leaf functions; a first run waits for the compiler.

    Raises:
        UserError: anything that keeps the models from being loaded or from fitting each other.
    """
    began = time.perf_counter()
    preset = load_preset(preset) if isinstance(preset, str) else preset
    settings = settings or Settings.of(preset)
    place = choose_device(device)
    node = preset.node
    if compile:
        check_compiler(place)
    parts: dict[str, VerifierNode] = {"verifier": node.verifier}
    if draft and node.drafter is not None:
        parts["drafter"] = node.drafter
    kinds = {role: part.quantize for role, part in parts.items()} | parse_quantize(quantize)
    for role in parts:
        check_kind(kinds[role], place)
    dtypes = {role: choose_dtype(dtype or part.dtype, place) for role, part in parts.items()}
    loaded = dict(load_models(preset, parts, place, dtypes, kinds))
    verifier, drafter = loaded["verifier"], loaded.get("drafter")
    codec, identity = load_codec(preset.fetch(node.codec.checkpoint), verifier.codec)
    codec.to(place)
    models = [("verifier", verifier), ("drafter", drafter)]
    check_together([(role, m.name, m.codec) for role, m in models if m is not None], identity)
    check_settings(settings, verifier, drafter)
    for model in (verifier, drafter):
        if model is not None:
            model.lm.transformer.compiled = compile
            if not compile:  # no compiler reads packed weights
                model.lm.pack()
    if place.type == "cpu":
        most = max(m.lm.parameter_count() for m in (verifier, drafter) if m is not None)
        torch.set_num_threads(threads or choose_threads(most))
    engine = Engine(preset, settings, place, verifier, drafter, codec, identity.fingerprint)
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
        self.learnt = Learnt()  # about draft lengths, clip after clip

    def with_settings(self, settings: Settings) -> Engine:
        """The same models with other settings.

        Raises:
            UserError: settings that do not fit the models.
        """
        check_settings(settings, self.verifier, self.drafter)
        again = copy.copy(self)
        again.settings = settings
        return again

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
        """The longest that is made at once, by the preset and by every model."""
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
        if duration > LONGEST:
            raise UserError(
                f"duration {duration:g} s is beyond {LONGEST:g} s, the longest piece; make it in "
                "parts with --continue-from"
            )
        return max(1, round(duration * self.codec.frame_rate))

    def windows(self, request: Request, given: int = 0) -> list[Window]:
        """How a piece is made: at once, or where it is longer than that, by windows that overlap;
        each of its prompts begins one. `given` frames are there from the start."""
        rate = self.codec.frame_rate
        longest = max(1, int(self.max_seconds * rate + 0.5))
        node = self.preset.node.duration
        stride = node.stride or 0.6 * node.max  # audiocraft's 18 s of 30 s
        sections = [0, *(round(at * rate) for at, _ in request.sections)]
        total = self.frames(request.duration or 0.0)
        stride_frames = max(1, min(longest, round(stride * rate)))
        return windows(total, longest, stride_frames, sections, given)

    def check(self, request: Request) -> Request:
        """The request with its duration filled in.

        Raises:
            UserError: an empty or too long prompt, a duration or seed out of range, audio that
                cannot be gone on from, a melody that cannot be followed.
        """
        for prompt in request.prompts:
            if not prompt.strip():
                raise UserError(
                    "the prompt is empty; say what to play, such as 'a slow air on the flute'"
                )
            self.verifier.conditioner.tokenize(prompt)
        duration = (
            self.preset.node.duration.default if request.duration is None else request.duration
        )
        if not 0 <= request.seed < 2**63:
            raise UserError(f"seed must lie between 0 and 2^63 - 1, got {request.seed}")
        self.frames(duration)
        times = [0.0, *(at for at, _ in request.sections), duration]
        if any(b - a < 1 / self.codec.frame_rate for a, b in itertools.pairwise(times)):
            raise UserError(
                f"prompts must begin one after the other within the {duration:g} s of the piece, "
                f"got times {', '.join(f'{at:g}' for at in times[1:-1])}"
            )
        if request.continue_from is not None:
            read_start(request.continue_from, self.codec, duration)
        if request.melody is not None:
            read_audio(request.melody, self.melody_rate(), 1)
            if duration > self.max_seconds:
                raise UserError(
                    f"a melody is followed for at most {self.max_seconds:g} s; ask for that"
                )
        return replace(request, duration=duration)

    def generate(
        self,
        requests: Iterable[Request],
        *,
        batch: int = 16,
        in_order: bool = True,
        on_round: Callable[[Progress], None] | None = None,
        on_audio: Callable[[Request, Tensor], None] | None = None,
    ) -> Iterator[Clip]:
        """Make clips, `batch` at a time: where one is done, the next takes its place.

        A clip's tokens do not depend on its batch.

        Args:
            requests: what to make.
            batch: most clips decoded together.
            in_order: yield clips in the order of their requests; False: as they are done.
            on_round: called after every round of the decode loop.
            on_audio: called with each clip's audio (`[C, n]`, on the CPU) as it comes to be, in
                order; together it is the clip's audio. For a codec that decodes growing pieces.

        Raises:
            UserError: a request that cannot be met; all are checked before any work is done.
        """
        checked = [self.check(request) for request in requests]
        for first in range(0, len(checked), MAX_REQUESTS_A_RUN):
            part = checked[first : first + MAX_REQUESTS_A_RUN]
            early: dict[int, Clip] = {}
            wanted = 0
            for index, clip in GenerationRun(self, part, batch, on_round, on_audio).clips():
                if not in_order:
                    yield clip
                    continue
                early[index] = clip
                while wanted in early:
                    yield early.pop(wanted)
                    wanted += 1

    @property
    def drafting(self) -> Drafting:
        """How the settings say to draft, in the verifier's steps."""
        settings = self.settings
        return Drafting(
            Rule(settings.rule),
            draft_steps(settings.draft_frames, self.verifier.pattern),
            settings.draft_temperatures,
            lenient(settings.lossy, self.codec),
        )

    def melody_rate(self) -> int:
        """Sample rate at which the verifier reads melodies.

        Raises:
            UserError: it follows none.
        """
        rate = rate_of(self.verifier.conditioner)
        if rate is None:
            raise UserError(
                f"{self.verifier.name} follows no melody: use a preset of a melody model"
            )
        return rate

    def now(self) -> float:
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
            "sections": [list(section) for section in clip.request.sections],
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
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "dtype": {
                "verifier": _dtype_name(self.verifier),
                "drafter": None if drafter is None else _dtype_name(drafter),
            },
            "quantize": {
                "verifier": self.verifier.quantize,
                "drafter": None if drafter is None else drafter.quantize,
            },
            "compiled": self.verifier.lm.transformer.compiled,
            "versions": versions(),
            "lossless": clip.lossless,
            "stats": clip.stats.as_dict(),
            "timings": clip.timings,
        }


def _dtype_name(model: LMCheckpoint) -> str:
    return str(model.lm.dtype).removeprefix("torch.")


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
