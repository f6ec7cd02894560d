"""A sitting: requests that are made together, from conditions to clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specgen.checkpoints.base import LMCheckpoint
from specgen.clips import Clip, Request
from specgen.codec.base import DecodeStream
from specgen.decoding.lane import Role
from specgen.decoding.loop import Finished, Piece, Progress, Settled, capacity, decode_pieces
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.devices import free_bytes
from specgen.errors import UserError
from specgen.listening import Continuation, Melody, continuations, melodies
from specgen.lm.chroma import melody_rate, prepends
from specgen.lm.session import LMSession
from specgen.lm.t5 import TextEncoder
from specgen.windows import Window

if TYPE_CHECKING:
    from specgen.engine import Engine

_BREATH = 0.5  # seconds of new tokens that are worth decoding to audio
_WHOLE = 60.0  # seconds that are decoded to audio in one go
_SHORT = 2_000_000_000  # bytes free on the host under which a T5 is not kept for the next prompt
_PART = 512  # frames of longer pieces that are


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

    @classmethod
    def of(
        cls,
        model: LMCheckpoint,
        prompts: Sequence[str],
        frames: int,
        guidance: float | None,
        rows: int | None = None,
        tunes: Sequence[Melody | None] = (),
        verifier: Cast | None = None,
    ) -> Cast:
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
class Making:
    """A request on its way to a clip.

    Attributes:
        windows: how it is made; `at` is the one being made.
        prompts: where its prompts lie among those of the sitting.
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
    heard: int = 0
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


class Sitting:
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
        self._making: list[Making] = []
        prompts: list[str] = []
        for request, start, tune in zip(requests, starts, tunes, strict=True):
            places = range(len(prompts), len(prompts) + len(request.prompts))
            prompts += request.prompts
            given = None if start is None else start.codes
            plan = engine.windows(request, 0 if given is None else given.shape[-1])
            self._making.append(Making(request, plan, places, start, tune, given))
        tunes = [one.tune for one in self._making for _ in one.prompts]
        frames = max(window.frames for one in self._making for window in one.windows)
        self._longest = frames
        self._rows, cfg = min(batch, len(requests)), engine.settings.sampling.cfg
        self._casts = [Cast.of(engine.verifier, prompts, frames, cfg, self._rows, tunes)]
        if engine.drafter is not None:
            cfg_too = cfg if engine.settings.drafter_cfg else None
            drafter = Cast.of(
                engine.drafter, prompts, frames, cfg_too, self._rows, tunes, self._casts[0]
            )
            self._casts.append(drafter)
        if on_audio is not None:
            for one in self._making:
                one.stream = stream_of(engine)
        if free_bytes(torch.device("cpu")) < _SHORT:
            for model in (engine.verifier, engine.drafter):
                let_go(model)
        self._conditioned = engine.now()

    def clips(self) -> Iterator[tuple[int, Clip]]:
        """Clips as they are done, with the places of their requests."""
        sampling = self._engine.settings.sampling
        made = decode_pieces(
            self._casts[0].role,
            self._casts[1].role if len(self._casts) > 1 else None,
            [one.piece() for one in self._making],
            rows=self._rows,
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
            drafting=self._engine.drafting,
            on_admit=self._admit,
            then=self._then,
            longest=self._longest,
            total_frames=sum(one.windows[-1].end for one in self._making),
            on_round=self._round if self._on_round or self._on_audio else None,
            learnt=self._engine.learnt,
        )
        while True:
            with torch.inference_mode():  # not around a yield: it would leak to the caller
                piece = next(made, None)
                if piece is None:
                    return
                one = self._making[piece.index]
                done = one.take(piece)
                if one.stream is not None and one.codes is not None:
                    self._hear(one, one.codes[:, one.heard :])
                clip = self._clip(one) if done else None
            if clip is not None:
                yield piece.index, clip

    def _admit(self, row: int, index: int) -> None:
        one = self._making[index]
        if one.admitted is None:
            one.admitted = self._engine.now()
        for cast in self._casts:
            cast.admit(row, one.prompts[one.window.section])

    def _then(self, made: Finished) -> Piece | None:
        one = self._making[made.index]
        return one.piece() if one.at < len(one.windows) else None

    def _round(self, progress: Progress) -> None:
        if self._on_round is not None:
            self._on_round(
                replace(progress, running=dict(map(self._whole, progress.running.items())))
            )
        if self._on_audio is None:
            return
        for index, settled in progress.running.items():
            one = self._making[index]
            fresh = one.window.origin + settled.frames - one.heard
            if fresh >= _BREATH * self._engine.codec.frame_rate:
                self._hear(one, settled.codes()[:, one.heard - one.window.origin :])

    def _whole(self, running: tuple[int, Settled]) -> tuple[int, Settled]:
        """How far a piece is, from its beginning and not from that of the window being made."""
        index, settled = running
        return index, replace(settled, frames=self._making[index].window.origin + settled.frames)

    def _hear(self, one: Making, codes: Tensor) -> None:
        """Push new codes `[K, n]` and pass on the audio they make possible."""
        assert one.stream is not None
        one.heard += codes.shape[1]
        self._pass_on(one, one.stream.push(codes[None]))

    def _pass_on(self, one: Making, wave: Tensor) -> None:
        part = wave[0].float().cpu()
        if part.shape[-1]:
            one.parts.append(part)
            if self._on_audio is not None:
                self._on_audio(one.request, part)

    def _clip(self, one: Making) -> Clip:
        engine, codes = self._engine, one.codes
        assert codes is not None and one.admitted is not None
        drawn = engine.now()
        if one.stream is None and codes.shape[1] > _WHOLE * engine.codec.frame_rate:
            one.stream = stream_of(engine) if hasattr(engine.codec, "stream") else None
        if one.stream is None:
            wave = engine.codec.decode(codes[None])[0].float().cpu()
        else:
            for low in range(one.heard, codes.shape[1], _PART):
                self._hear(one, codes[:, low : low + _PART])
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


def let_go(model: LMCheckpoint | None) -> None:
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
