"""A run: requests that are made together, from conditions to clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specgen.audio.reading import Continuation, Melody, continuations, melodies
from specgen.checkpoints.base import LMCheckpoint
from specgen.codec.base import DecodeStream
from specgen.decoding.lane import Role
from specgen.decoding.loop import Finished, Piece, Progress, Settled, capacity, decode_pieces
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.devices import free_bytes
from specgen.errors import UserError
from specgen.lm.chroma import melody_rate, prepends
from specgen.lm.session import LMSession
from specgen.lm.t5 import TextEncoder
from specgen.requests import Clip, Request

if TYPE_CHECKING:
    from specgen.engine import Engine

STREAM_CHUNK_SECONDS = 0.5  # of new tokens, before they are decoded to audio
MAX_WHOLE_DECODE_SECONDS = 60.0  # of a clip whose audio is decoded in one go
KEEP_ENCODER_FREE_BYTES = 2_000_000_000  # of host memory; with less, a T5 is unloaded
STREAM_CHUNK_FRAMES = 512  # of a longer clip that are decoded at once


@dataclass(frozen=True)
class ConditionedModel:
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

    @classmethod
    def of(
        cls,
        model: LMCheckpoint,
        prompts: Sequence[str],
        frames: int,
        guidance: float | None,
        rows: int | None = None,
        tunes: Sequence[Melody | None] = (),
        verifier: ConditionedModel | None = None,
    ) -> ConditionedModel:
        """A model ready to decode up to `frames` frames for each prompt, `rows` of them at a time
        (None: all), each after its melody if the model follows any; a drafter, for `verifier`."""
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
                verifier=None if verifier is None else verifier.session,
            )
        return cls(Role(session, model.pattern), session, condition, mask)

    def admit(self, row: int, prompt: int) -> None:
        """Let a row follow a prompt."""
        self.session.admit(row, self.condition[prompt], self.mask[prompt])


@dataclass
class RequestState:
    """A request on its way to a clip.

    Attributes:
        windows: how it is made; `at` is the one being made.
        prompts: where its prompts lie among those of the run.
        codes: `[K, T']` of the windows that are done (or given at the start).
        stats: of the windows that are done.
        stream: its audio so far, if it is listened to; `heard`: frames pushed, `parts`: what came.
    """

    request: Request
    windows: list[Window]
    prompts: range
    start: Continuation | None
    tune: Melody | None
    codes: Tensor | None = None
    at: int = 0
    stats: list[DecodeStats] = field(default_factory=list)
    admitted: float | None = None
    stream: DecodeStream | None = None
    streamed: int = 0
    parts: list[Tensor] = field(default_factory=list)

    @property
    def window(self) -> Window:
        return self.windows[self.at]

    def piece(self) -> Piece:
        """The window being made, as a grid to decode."""
        window, prompt = self.window, None
        if window.start > window.origin:
            assert self.codes is not None
            prompt = self.codes[:, window.origin : window.start]
        return Piece(window.frames, self.request.seed, prompt, window.origin)

    def take(self, made: Finished) -> bool:
        """Add a finished window; returns whether it was the last."""
        fresh = made.codes[:, self.window.start - self.window.origin :]
        self.codes = fresh if self.codes is None else torch.cat([self.codes, fresh], dim=1)
        self.stats.append(made.stats)
        self.at += 1
        return self.at == len(self.windows)


class GenerationRun:
    """Requests that are made together.

    Args:
        engine: whose models make them.
        requests: checked.
        batch: most rows decoded together.
        on_round, on_audio: see `Engine.generate`.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        batch: int,
        on_round: Callable[[Progress], None] | None,
        on_audio: Callable[[Request, Tensor], None] | None,
    ) -> None:
        self._engine, self._on_round, self._on_audio = engine, on_round, on_audio
        self._began = engine.now()
        starts = continuations([r.continue_from for r in requests], engine.codec, engine.device)
        tunes: list[Melody | None] = [None] * len(requests)
        if any(r.melody for r in requests):
            tunes = melodies([r.melody for r in requests], engine.melody_rate())
        self._states: list[RequestState] = []
        prompts: list[str] = []
        for request, start, tune in zip(requests, starts, tunes, strict=True):
            places = range(len(prompts), len(prompts) + len(request.prompts))
            prompts += request.prompts
            given = None if start is None else start.codes
            plan = engine.windows(request, 0 if given is None else given.shape[-1])
            self._states.append(RequestState(request, plan, places, start, tune, given))
        tunes = [one.tune for one in self._states for _ in one.prompts]
        frames = max(window.frames for one in self._states for window in one.windows)
        self._longest = frames
        self._rows, cfg = min(batch, len(requests)), engine.settings.sampling.cfg
        self._models = [
            ConditionedModel.of(engine.verifier, prompts, frames, cfg, self._rows, tunes)
        ]
        if engine.drafter is not None:
            cfg_too = cfg if engine.settings.drafter_cfg else None
            drafter = ConditionedModel.of(
                engine.drafter, prompts, frames, cfg_too, self._rows, tunes, self._models[0]
            )
            self._models.append(drafter)
        if on_audio is not None:
            for one in self._states:
                one.stream = stream_of(engine)
        if free_bytes(torch.device("cpu")) < KEEP_ENCODER_FREE_BYTES:
            for model in (engine.verifier, engine.drafter):
                unload(model)
        self._conditioned = engine.now()

    def clips(self) -> Iterator[tuple[int, Clip]]:
        """Clips as they are done, with the places of their requests."""
        sampling = self._engine.settings.sampling
        made = decode_pieces(
            self._models[0].role,
            self._models[1].role if len(self._models) > 1 else None,
            [one.piece() for one in self._states],
            rows=self._rows,
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
            drafting=self._engine.drafting,
            on_admit=self._admit,
            then=self._then,
            longest=self._longest,
            total_frames=sum(one.windows[-1].end for one in self._states),
            on_round=self._round if self._on_round or self._on_audio else None,
            learnt=self._engine.learnt,
        )
        while True:
            with torch.inference_mode():  # not around a yield: it would leak to the caller
                piece = next(made, None)
                if piece is None:
                    return
                one = self._states[piece.index]
                done = one.take(piece)
                if one.stream is not None and one.codes is not None:
                    self._stream(one, one.codes[:, one.streamed :])
                clip = self._clip(one) if done else None
            if clip is not None:
                yield piece.index, clip

    def _admit(self, row: int, index: int) -> None:
        one = self._states[index]
        if one.admitted is None:
            one.admitted = self._engine.now()
        for model in self._models:
            model.admit(row, one.prompts[one.window.section])

    def _then(self, made: Finished) -> Piece | None:
        one = self._states[made.index]
        return one.piece() if one.at < len(one.windows) else None

    def _round(self, progress: Progress) -> None:
        if self._on_round is not None:
            self._on_round(
                replace(progress, running=dict(map(self._whole, progress.running.items())))
            )
        if self._on_audio is None:
            return
        for index, settled in progress.running.items():
            one = self._states[index]
            fresh = one.window.origin + settled.frames - one.streamed
            if fresh >= STREAM_CHUNK_SECONDS * self._engine.codec.frame_rate:
                self._stream(one, settled.codes()[:, one.streamed - one.window.origin :])

    def _whole(self, running: tuple[int, Settled]) -> tuple[int, Settled]:
        """How far a piece is, from its beginning and not from that of the window being made."""
        index, settled = running
        return index, replace(settled, frames=self._states[index].window.origin + settled.frames)

    def _stream(self, one: RequestState, codes: Tensor) -> None:
        """Push new codes `[K, n]` and pass on the audio they make possible."""
        assert one.stream is not None
        one.streamed += codes.shape[1]
        self._pass_on(one, one.stream.push(codes[None]))

    def _pass_on(self, one: RequestState, wave: Tensor) -> None:
        part = wave[0].float().cpu()
        if part.shape[-1]:
            one.parts.append(part)
            if self._on_audio is not None:
                self._on_audio(one.request, part)

    def _clip(self, one: RequestState) -> Clip:
        engine, codes = self._engine, one.codes
        assert codes is not None and one.admitted is not None
        drawn = engine.now()
        if (
            one.stream is None
            and codes.shape[1] > MAX_WHOLE_DECODE_SECONDS * engine.codec.frame_rate
        ):
            one.stream = stream_of(engine) if hasattr(engine.codec, "stream") else None
        if one.stream is None:
            wave = engine.codec.decode(codes[None])[0].float().cpu()
        else:
            for low in range(one.streamed, codes.shape[1], STREAM_CHUNK_FRAMES):
                self._stream(one, codes[:, low : low + STREAM_CHUNK_FRAMES])
            self._pass_on(one, one.stream.finish())
            wave = torch.cat(one.parts, dim=-1)
        timings = {
            "load_seconds": engine.load_seconds,
            "condition_seconds": self._conditioned - self._began,
            "decode_seconds": drawn - one.admitted,
            "codec_seconds": engine.now() - drawn,
        }
        spent = sum(timings.values()) - engine.load_seconds
        rate = engine.codec.sample_rate
        unknown = [
            word
            for text in one.request.prompts
            for word in engine.verifier.conditioner.tokenize(text).unknown
        ]
        return Clip(
            one.request,
            codes.cpu(),
            wave,
            rate,
            DecodeStats.total(one.stats),
            {**timings, "audio_seconds_per_second": wave.shape[-1] / rate / spent},
            engine.lossless,
            list(dict.fromkeys(unknown)),
            one.start,
            one.tune,
        )


def unload(model: LMCheckpoint | None) -> None:
    """Free the weights of a model's T5, which wait for prompts in the host's memory (never on a
    card); a new prompt reads them again."""
    conditioner = None if model is None else model.conditioner
    encoder = getattr(getattr(conditioner, "text", conditioner), "encoder", None)
    if isinstance(encoder, TextEncoder):
        encoder.free()


def stream_of(engine: Engine) -> DecodeStream:
    """A stream of the engine's codec.

    Raises:
        UserError: the codec decodes whole pieces only.
    """
    stream = getattr(engine.codec, "stream", None)
    if stream is None:
        raise UserError("this codec decodes whole pieces only; leave out --stream")
    made: DecodeStream = stream()
    return made


@dataclass(frozen=True)
class Window:
    """Frames `[start, end)` of a piece are made here, seeing those from `origin` on.

    Attributes:
        section: which of the piece's prompts is followed.
    """

    origin: int
    start: int
    end: int
    section: int = 0

    @property
    def frames(self) -> int:
        return self.end - self.origin


def windows(
    total: int, window: int, stride: int, sections: Sequence[int] = (0,), given: int = 0
) -> list[Window]:
    """Windows that make `total` frames.

    Args:
        total: frames of the piece.
        window: longest that a model makes at once.
        stride: frames that a window adds to the one before; `window - stride` are seen again.
        sections: first frame of each prompt, rising, the first at 0; a section begins a window.
        given: frames that are there from the start (a continuation).

    Raises:
        ValueError: lengths that cannot be met.
    """
    if not 0 < stride <= window or not 0 <= given < total:
        raise ValueError(f"no windows of {window} frames by {stride} make {total} after {given}")
    if list(sections) != sorted(set(sections)) or sections[0] != 0 or sections[-1] >= total:
        raise ValueError(f"sections must rise from 0 to below {total}, got {list(sections)}")
    made: list[Window] = []
    at = given
    while at < total:
        section = max(i for i, first in enumerate(sections) if first <= at)
        ends = sections[section + 1] if section + 1 < len(sections) else total
        seen = at if not made and at < window else min(at, window - stride)
        end = min(at - seen + window, ends)
        made.append(Window(at - seen, at, end, section))
        at = end
    return made
