"""How the sides sound: distances of embeddings, tags, spectra and levels, all with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.codec.base import Codec
from specgen.errors import UserError
from specgen.evaluation import distances as signals
from specgen.evaluation.distances import (
    frechet_distance,
    frechet_infinity,
    kernel_distance,
    median_distance,
)
from specgen.evaluation.embedders import Embedder, MusicnnEmbedder, resample
from specgen.evaluation.musicnn import divergences, text_agreement, wanted
from specgen.evaluation.two_sample import Figure, bootstrap, mean, permutation_p

LEAST = 8  # clips a side below which no distance between sets is given

Array = NDArray[Any]


@dataclass(frozen=True)
class SideFeatures:
    """What is known of a set of clips; row i of every array is clip i.

    Attributes:
        label: of the side.
        prompts: of the clips; empty where they have none.
        embeddings: `[N, D]`.
        tags: `[N, 50]`.
        signal: `[N, ...]`, rows of `signals.statistics`.
    """

    label: str
    prompts: tuple[str, ...]
    embeddings: Array
    tags: Array
    signal: Array

    def __len__(self) -> int:
        return len(self.tags)

    def take(self, rows: Sequence[int]) -> SideFeatures:
        """Some of the clips."""
        prompts = tuple(self.prompts[i] for i in rows) if self.prompts else ()
        at = list(rows)
        return SideFeatures(
            self.label, prompts, self.embeddings[at], self.tags[at], self.signal[at]
        )


class Listener:
    """Hears clips: musicnn always (its tags are needed), another embedder if asked for."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._tagger = embedder if isinstance(embedder, MusicnnEmbedder) else MusicnnEmbedder()

    def hear(
        self, label: str, waves: Sequence[tuple[Array, int]], prompts: Sequence[str] = ()
    ) -> SideFeatures:
        """`waves` are mono samples and their rate; silence is heard too."""
        rows = [self._one(np.asarray(wave, np.float32), rate) for wave, rate in waves]
        embeddings, tags, signal = (np.stack(part) for part in zip(*rows, strict=True))
        return SideFeatures(label, tuple(prompts), embeddings, tags, signal)

    def _one(self, wave: Array, rate: int) -> tuple[Array, Array, Array]:
        hidden, tags = self._tagger.analyse(resample(wave, rate, self._tagger.sample_rate))
        if self.embedder is not self._tagger:
            hidden = self.embedder.embed(resample(wave, rate, self.embedder.sample_rate))
        return hidden, tags, signals.statistics(wave, rate)


def tag_shift(a: Array, b: Array) -> float:
    """KL between the sides' mean tag posteriors, in nats: blind to which clip is which."""
    return float(divergences(a.mean(axis=0)[None], b.mean(axis=0)[None])[0])


def describe(side: SideFeatures) -> dict[str, Any]:
    """Figures of one side by itself: levels, and how well it fits its prompts."""
    found: dict[str, Any] = {
        name: mean(side.signal[:, i]).as_dict() for i, name in enumerate(signals.NAMES)
    }
    found["text_agreement"] = None
    if side.prompts:
        asked = wanted(side.prompts)
        figure = bootstrap(text_agreement, side.tags, asked, paired=True)
        if np.isfinite(figure.value) and np.isfinite(figure.low):
            found["text_agreement"] = figure.as_dict()
    return found


def distance(reference: SideFeatures, side: SideFeatures, *, paired: bool) -> dict[str, Any] | None:
    """Distances of a side to a reference set, None below `LEAST` clips.

    Args:
        reference, side: what is compared.
        paired: row i of both is one prompt and seed; then KL is given too, clip by clip, and
            permutation tests of whether the sides differ at all.
    """
    if min(len(reference), len(side)) < LEAST:
        return None

    kernel = partial(kernel_distance, paired=paired)

    def figure(statistic: Any, name: str, least: float = 0.0) -> dict[str, Any]:
        a, b = getattr(reference, name), getattr(side, name)
        return bootstrap(statistic, a, b, paired=paired, rounds=100, least=least).as_dict()

    found = {
        "against": reference.label,
        "frechet": figure(frechet_distance, "embeddings"),
        # The extrapolation supposes that no clip is on both sides.
        "frechet_infinity": None if paired else figure(frechet_infinity, "embeddings", -np.inf),
        "kernel": figure(kernel, "embeddings", -np.inf),
        "spectrum_db": figure(signals.spectrum_distance, "signal"),
        "tag_shift": figure(tag_shift, "tags"),
        "tag_kl": None,
        "p": None,
    }
    if paired:
        found["tag_kl"] = mean(divergences(reference.tags, side.tags), least=0.0).as_dict()
        found["p"] = _tests(reference, side)
    return found


def _tests(a: SideFeatures, b: SideFeatures) -> dict[str, float]:
    """Permutation tests of whether two paired sides differ."""
    width = median_distance(np.concatenate([a.embeddings, b.embeddings]))
    kernel = partial(kernel_distance, paired=True, width=width)
    return {
        "frechet": permutation_p(frechet_distance, a.embeddings, b.embeddings, 200),
        "kernel": permutation_p(kernel, a.embeddings, b.embeddings, 500),
        "tag_shift": permutation_p(tag_shift, a.tags, b.tags, 500),
    }


def kl_floor(side: SideFeatures) -> Figure | None:
    """KL between clips of one prompt with different seeds: what chance alone gives a pair.

    None if no prompt has two clips.
    """
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(side.prompts):
        groups.setdefault(prompt, []).append(i)
    pairs = [(g[i], g[i + 1]) for g in groups.values() for i in range(len(g) - 1)]
    if not pairs:
        return None
    first, second = (list(part) for part in zip(*pairs, strict=True))
    return mean(divergences(side.tags[first], side.tags[second]))


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
