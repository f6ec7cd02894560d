"""Making the clips of several sides, in turn, keeping whatever gets done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.decoding.loop import Progress
from specgen.decoding.stats import DecodeStats
from specgen.engine import Clip, Engine, Request, load
from specgen.errors import UserError
from specgen.presets import Preset
from specgen.requests import Settings

TIME_BINS = 24
_PATIENCE = 2  # failed batches in a row after which a side is given up


@dataclass(frozen=True)
class Side:
    """One way of making clips.

    Attributes:
        label: as the user wrote it.
        preset, settings, draft, dtype, quantize: see `specgen.engine.load`.
    """

    label: str
    preset: Preset
    settings: Settings
    draft: bool = True
    dtype: str | None = None
    quantize: str | None = None

    def load(self, device: str = "auto", threads: int | None = None) -> Engine:
        """Its models."""
        return load(
            self.preset,
            device=device,
            dtype=self.dtype,
            draft=self.draft,
            settings=self.settings,
            threads=threads,
            quantize=self.quantize,
        )


@dataclass
class Made:
    """One clip of a side.

    Attributes:
        request: prompt, seed and duration.
        codes: `[K, T]`.
        wave: `[N]` mono float32.
        rate: samples a second.
        sidecar: what `Engine.sidecar` says of it.
    """

    request: Request
    codes: NDArray[np.int64]
    wave: NDArray[np.float32]
    rate: int
    sidecar: dict[str, Any] = field(repr=False)


@dataclass
class Run:
    """What one side made.

    Attributes:
        label: of the side.
        engine: its loaded models; None for a side that is not made by a model.
        clips: by place in the list of requests.
        seconds: of each round of batches in which no side failed, by the clock.
        timed_audio: seconds of audio made in those rounds.
        stats: counts of all clips.
        over_time: `[TIME_BINS, 2]` drafted and accepted tokens, by place in the clip.
        failures: one line each.
    """

    label: str
    engine: Engine | None
    clips: dict[int, Made] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    timed_audio: float = 0.0
    stats: list[DecodeStats] = field(default_factory=list)
    over_time: NDArray[np.float64] = field(default_factory=lambda: np.zeros((TIME_BINS, 2)))
    failures: list[str] = field(default_factory=list)

    @property
    def lossless(self) -> bool:
        return self.engine is None or self.engine.lossless

    def total(self) -> DecodeStats | None:
        """Counts of all clips."""
        return DecodeStats.total(self.stats) if self.stats else None


class Clock:
    """Takes a batch's progress and adds up acceptance by place in the clip."""

    def __init__(self, over_time: NDArray[np.float64]) -> None:
        self._over_time = over_time
        self._before = (0, 0)

    def __call__(self, progress: Progress) -> None:
        now = (sum(progress.stats.drafted), sum(progress.stats.accepted))
        share = progress.frames_done / progress.frames_total
        place = min(int(share * TIME_BINS), TIME_BINS - 1)
        self._over_time[place] += np.subtract(now, self._before)
        self._before = now


def requests_of(prompts: Sequence[str], seeds: int, first: int, duration: float) -> list[Request]:
    """Every prompt with `seeds` seeds; no two clips of a run share a seed."""
    return [
        Request(prompt, first + i * seeds + j, duration, id=f"{i + 1:03d}-{first + i * seeds + j}")
        for i, prompt in enumerate(prompts)
        for j in range(seeds)
    ]


def make_all(
    sides: Sequence[tuple[str, Engine]],
    requests: Sequence[Request],
    *,
    batch: int,
    say: Callable[[str], None],
    keep: Callable[[str, Made], None] | None = None,
) -> tuple[list[Run], bool]:
    """Make every request on every side, sides in turn, batch by batch.

    Every other round runs the sides in reverse, so that a drift of the machine meets all alike.
    What fails is told in one line and the rest goes on; a side that fails twice in a row is given
    up. Ctrl-C ends the making, not the program.

    Args:
        sides: label and engine.
        requests: see `requests_of`.
        batch: clips decoded together.
        say: told what happens.
        keep: given every clip as soon as it is made.

    Returns:
        One `Run` a side, and whether it was interrupted.
    """
    runs = [Run(label, engine) for label, engine in sides]
    strikes = [0] * len(runs)
    starts = range(0, len(requests), batch)
    began = time.perf_counter()
    try:
        for turn, first in enumerate(starts):
            part = list(requests[first : first + batch])
            order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
            seconds: dict[int, float] = {}
            for i in order:
                if strikes[i] >= _PATIENCE:
                    continue
                spent = _make(runs[i], part, first, keep)
                if spent is not None:
                    seconds[i], strikes[i] = spent, 0
                    continue
                strikes[i] += 1
                say(f"failed: {runs[i].failures[-1]}")
                if strikes[i] == _PATIENCE and first + batch < len(requests):
                    left = len(requests) - first - batch
                    runs[i].failures.append(f"{runs[i].label}: gave up, {left} clips not made")
                    say(f"failed: {runs[i].failures[-1]}")
            if len(seconds) == len(runs):
                for i, run in enumerate(runs):
                    run.seconds.append(seconds[i])
                    run.timed_audio += sum(request.duration or 0.0 for request in part)
            done = min(first + batch, len(requests))
            left_seconds = (time.perf_counter() - began) / done * (len(requests) - done)
            say(f"{done} of {len(requests)} clips a side, about {left_seconds:.0f} s left")
    except KeyboardInterrupt:
        say("interrupted; what was made is kept and reported")
        return runs, True
    return runs, False


def _make(
    run: Run, part: list[Request], first: int, keep: Callable[[str, Made], None] | None
) -> float | None:
    """One batch of one side; its seconds, or None if it failed."""
    assert run.engine is not None
    over_time = np.zeros_like(run.over_time)
    began = time.perf_counter()
    try:
        clips = list(run.engine.generate(part, batch=len(part), on_round=Clock(over_time)))
        spent = time.perf_counter() - began
        for i, clip in enumerate(clips):
            made = _made(run.engine, clip)
            run.clips[first + i] = made
            run.stats.append(clip.stats)
            if keep is not None:
                keep(run.label, made)
    except (RuntimeError, MemoryError, OSError, UserError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        name = part[0].id if len(part) == 1 else f"{part[0].id} to {part[-1].id}"
        run.failures.append(f"{run.label}: clips {name}: {text}")
        return None
    run.over_time += over_time
    return spent


def _made(engine: Engine, clip: Clip) -> Made:
    wave = clip.audio.mean(dim=0).numpy().astype(np.float32)
    return Made(clip.request, clip.codes.numpy(), wave, clip.sample_rate, engine.sidecar(clip))


def make_short(
    engine: Engine, prompt: str, *, clips: int, frames: int, first: int, batch: int = 64
) -> NDArray[np.int64]:
    """Many very short clips of one prompt, without sound: `[clips, K, frames]` tokens."""
    duration = frames / engine.codec.frame_rate
    requests = [Request(prompt, first + i, duration) for i in range(clips)]
    made = engine.generate(requests, batch=batch)
    return torch.stack([clip.codes for clip in made]).numpy()


BUILT_IN = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class Prompts:
    """Prompts as read.

    Attributes:
        lines: in order, each once.
        notes: what was left out, for the user.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_prompts(path: Path | None = None) -> Prompts:
    """The prompts of a file (`-` is stdin), or the built-in 24, which no model was trained on.

    Empty lines and repeated prompts are left out and counted.

    Raises:
        UserError: no such file, bytes that are not UTF-8, no prompt.
    """
    path = path or BUILT_IN
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read prompts from {path}: {error.strerror}; check the path"
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line} is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    given = [line.strip() for line in text.splitlines()]
    filled = [line for line in given if line]
    lines = tuple(dict.fromkeys(filled))
    if not lines:
        raise UserError(f"{path} has no prompts; write one a line")
    notes = []
    if len(given) > len(filled):
        notes.append(_count(len(given) - len(filled), "empty line") + " left out")
    if len(filled) > len(lines):
        notes.append(_count(len(filled) - len(lines), "repeated prompt") + " left out")
    return Prompts(lines, tuple(f"{path}: {note}" for note in notes))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
