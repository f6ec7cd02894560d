"""Plain statistics of a clip's sound: level, loudness, dynamics, and its average spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.evaluation.musicnn import mel_filters

BANDS = 64
SILENT = -60.0  # dBFS from which a window counts as silence
NAMES = ("loudness_lufs", "peak_dbfs", "dynamics_db", "silence_share", "centroid_hz")


def _decibels(power: NDArray[Any], floor: float = 1e-10) -> NDArray[np.float64]:
    made: NDArray[np.float64] = 10 * np.log10(np.maximum(power, floor))
    return made


def loudness(wave: NDArray[Any], rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, by pyloudnorm); -70 for silence.

    Clips under 0.4 s, the length of its window, are repeated to fill it.
    """
    import pyloudnorm

    needed = math.ceil(0.4 * rate) + 1
    wave = np.tile(wave, -(-needed // len(wave))) if len(wave) < needed else wave
    with np.errstate(divide="ignore"):
        value = float(pyloudnorm.Meter(rate).integrated_loudness(wave.astype(np.float64)))
    return max(value, -70.0)


def statistics(wave: NDArray[Any], rate: int) -> NDArray[np.float64]:
    """`[N]` mono samples to the statistics named by `NAMES`, then a log-mel spectrum: `[5 + 64]`.

    Loudness in LUFS, peak in dBFS, dynamics (standard deviation of the level of 50 ms windows that
    are not silent) in dB, share of silent windows, spectral centroid in Hz; then the average power
    of 64 mel bands in dB, relative to the clip's own mean.
    """
    wave = np.asarray(wave, np.float64)
    size = max(rate // 20, 1)
    windows = np.pad(wave, (0, -len(wave) % size)).reshape(-1, size)
    levels = _decibels((windows**2).mean(axis=1))
    heard = levels[levels > SILENT]
    power = _power(wave)
    hertz = np.linspace(0, rate / 2, power.shape[0])
    average = power.mean(axis=1)
    centroid = float((hertz * average).sum() / max(average.sum(), 1e-12))
    bank = mel_filters(BANDS, 2 * (len(hertz) - 1), rate).numpy()
    bands = _decibels(bank @ average)
    head = (
        loudness(wave, rate),
        float(_decibels(np.array([np.abs(wave).max(initial=0) ** 2]))[0]),
        float(heard.std()) if len(heard) else 0.0,
        float((levels <= SILENT).mean()),
        centroid,
    )
    return np.concatenate([np.array(head), bands - bands.mean()])


def _power(wave: NDArray[Any], window: int = 1024) -> NDArray[np.float64]:
    """Power spectrogram `[513, frames]`."""
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(wave)),
        window,
        window // 4,
        window=torch.hann_window(window, dtype=torch.float64),
        pad_mode="constant",
        return_complex=True,
    )
    power: NDArray[np.float64] = spectrum.abs().square().numpy()
    return power


def spectrum_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean absolute difference in dB between two sets' average log-mel spectra.

    Args:
        a, b: rows of `statistics`.
    """
    first = len(NAMES)
    return float(np.abs(a[:, first:].mean(axis=0) - b[:, first:].mean(axis=0)).mean())
