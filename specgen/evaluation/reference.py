"""Recordings to measure against, and the two ends of the scale that they give.

The files of a folder are split in two: every other file is the reference set; the rest goes through
the codec and back (nothing made of these tokens can be nearer), and gives the token frequencies
from which clips without any order are drawn (nothing should be further).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.codec.base import Codec
from specgen.errors import UserError
from specgen.evaluation.embedders import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

Wave = tuple[NDArray[np.float32], int]


@dataclass(frozen=True)
class Recordings:
    """Mono clips of one length, and which folder they come from."""

    folder: Path
    waves: list[Wave]
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> list[Wave]:
        return self.waves[::2]

    @property
    def others(self) -> list[Wave]:
        return self.waves[1::2]


def read_recordings(folder: Path, seconds: float) -> Recordings:
    """The first `seconds` of every audio file of a folder, as mono.

    Files that are shorter are left out and counted.

    Raises:
        UserError: no such folder, a file that cannot be read, fewer than 16 that are long enough.
    """
    import soundfile

    if not folder.is_dir():
        raise UserError(f"--reference {folder} is not a folder; give one with audio files")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    waves: list[Wave] = []
    for path in paths:
        try:
            with soundfile.SoundFile(path) as file:
                wanted = round(seconds * file.samplerate)
                wave = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
                if len(wave) == wanted:
                    waves.append((wave, file.samplerate))
        except (OSError, soundfile.SoundFileError) as error:
            raise UserError(f"cannot read {path}: {error}; remove it or mend it") from None
    if len(waves) < 16:
        raise UserError(
            f"--reference {folder} has {len(waves)} audio files of {seconds:g} s or more; at least "
            "16 are needed"
        )
    short = len(paths) - len(waves)
    notes = (f"{folder}: {short} files are shorter than {seconds:g} s, left out",) if short else ()
    return Recordings(folder, waves, notes)


def tokens_of(waves: Sequence[Wave], codec: Codec) -> NDArray[np.int64]:
    """`[N, K, T]` tokens of recordings of one length."""
    rows = []
    for wave, rate in waves:
        there = torch.from_numpy(resample(wave, rate, codec.sample_rate))
        rows.append(codec.encode(there.expand(1, codec.channels, -1).to(_device(codec)))[0].cpu())
    return torch.stack(rows).numpy()


def shuffled(codes: NDArray[np.int64], clips: int, seed: int = 0) -> NDArray[np.int64]:
    """`[clips, K, T]` tokens drawn one by one with the frequencies of each codebook."""
    rng = np.random.default_rng(seed)
    _, K, T = codes.shape
    return np.stack([rng.choice(codes[:, k].ravel(), size=(clips, T)) for k in range(K)], axis=1)


def sounds_of(codes: NDArray[np.int64], codec: Codec) -> list[Wave]:
    """Tokens `[N, K, T]` as mono clips."""
    made: list[Wave] = []
    for row in codes:
        wave = codec.decode(torch.from_numpy(row)[None].to(_device(codec)))[0]
        made.append((wave.mean(dim=0).float().cpu().numpy(), codec.sample_rate))
    return made


def _device(codec: Any) -> torch.device:
    parameter = next(iter(codec.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device
