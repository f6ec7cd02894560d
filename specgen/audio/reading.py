"""Audio that a clip is made from: what it begins with and goes on from, the melody it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from specgen.checkpoints.native import file_sha256
from specgen.codec.base import Codec
from specgen.errors import UserError

T = TypeVar("T")
_SILENT = 1e-4  # peak, of a full scale of 1 (-80 dB)


@dataclass(frozen=True)
class AudioSource:
    """An audio file that was read; `sha256` is of its bytes."""

    path: Path
    sha256: str

    def as_dict(self) -> dict[str, str]:
        """What a sidecar records of it."""
        return {"path": str(self.path.resolve()), "sha256": self.sha256}


@dataclass(frozen=True)
class Continuation(AudioSource):
    """What a clip goes on from: `codes` are `[K, T0]` int64 tokens, on the codec's device."""

    codes: Tensor


@dataclass(frozen=True)
class Melody(AudioSource):
    """What a clip follows: `wav` is mono `[N]` float32, at the rate that the model reads."""

    wav: Tensor


def continuations(
    paths: Sequence[Path | None], codec: Codec, device: torch.device
) -> list[Continuation | None]:
    """What each clip goes on from, encoded on the codec's device; a file is encoded once.

    Raises:
        UserError: see `read_start`.
    """

    def read(path: Path) -> Continuation:
        wav = read_start(path, codec).to(device)
        return Continuation(path, file_sha256(path), codec.encode(wav[None])[0])

    return _each(paths, read)


def melodies(paths: Sequence[Path | None], sample_rate: int) -> list[Melody | None]:
    """What each clip follows; a file is read once.

    Raises:
        UserError: see `read_audio`.
    """

    def read(path: Path) -> Melody:
        return Melody(path, file_sha256(path), read_audio(path, sample_rate, 1)[0])

    return _each(paths, read)


def _each(paths: Sequence[Path | None], read: Callable[[Path], T]) -> list[T | None]:
    made: dict[Path, T] = {}
    for path in paths:
        if path is not None and path not in made:
            made[path] = read(path)
    return [None if path is None else made[path] for path in paths]


def read_start(path: Path, codec: Codec, seconds: float | None = None) -> Tensor:
    """An audio file as a clip can start with it: `[C, N]` float32, of whole frames.

    What is left over at its end is cut off: a frame filled up with silence would be heard.

    Args:
        path: any file that soundfile reads.
        codec: of the model that goes on from it.
        seconds: of the whole clip; None where that has been checked.

    Raises:
        UserError: see `read_audio`, or a file that is too long, or shorter than a frame.
    """
    wav = read_audio(path, codec.sample_rate, codec.channels, seconds)
    frame = round(codec.sample_rate / codec.frame_rate)
    whole = wav.shape[-1] // frame
    if whole < 1:
        raise UserError(
            f"{path} is shorter than one frame ({1000 / codec.frame_rate:g} ms): "
            "give a longer piece to go on from"
        )
    if seconds is not None and whole >= max(1, round(seconds * codec.frame_rate)):
        raise _too_long(path, wav.shape[-1] / codec.sample_rate, seconds)
    return wav[:, : whole * frame]


def read_audio(path: Path, sample_rate: int, channels: int, longest: float | None = None) -> Tensor:
    """An audio file as `[channels, N]` float32 at `sample_rate`.

    Channels are averaged for a mono codec, and one is doubled for a stereo codec; of a file with
    more channels a stereo codec gets the first two.

    Args:
        longest: refuse a file of so many seconds or more, before reading all of it.

    Raises:
        UserError: a file that is missing, not audio, empty, silent, too long, or not finite.
    """
    import soundfile
    import soxr

    if not path.is_file():
        raise UserError(f"audio file {path} does not exist: check the path")
    try:
        info = soundfile.info(path)
        if longest is not None and info.duration >= longest:
            raise _too_long(path, info.duration, longest)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot read {path} as audio ({reason}): give a WAV, FLAC, OGG or MP3 file"
        ) from None
    if not len(samples):
        raise UserError(f"{path} holds no sound: give a file with audio in it")
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds samples that are not numbers: write the file again")
    if channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    elif samples.shape[1] == 1:
        samples = samples.repeat(channels, axis=1)
    else:
        samples = samples[:, :channels]
    if np.abs(samples).max() < _SILENT:
        raise UserError(f"{path} is silent: give a file with music in it")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="VHQ")
    return torch.from_numpy(np.ascontiguousarray(samples.T, dtype=np.float32))


def _too_long(path: Path, seconds: float, longest: float) -> UserError:
    return UserError(
        f"{path} has {seconds:.2f} s, but the clip is to have {longest:g} s in all: "
        "ask for a longer --duration, or cut the file"
    )
