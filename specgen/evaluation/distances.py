"""Distances between two sets of embeddings: Fréchet, Fréchet without its sample bias, kernel.

All take `[N, D]` arrays, one row a clip, and compute in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.evaluation.musicnn import mel_filters

Array = NDArray[np.float64]
KAD_SCALE = 100.0  # kadtk's: the published figures are 100 times the squared MMD


def frechet_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Fréchet audio distance (Kilgour et al. 2019)
    when the rows are embeddings of clips. The last term is computed as the nuclear norm of
    X_a X_b^T, the product of the centred sets, so that no root of a covariance is taken that fewer
    clips than dimensions make singular.

    Args:
        a, b: `[N, D]` and `[M, D]`.

    Raises:
        ValueError: fewer than two rows, or unequal widths.
    """
    a, b = _pair(a, b)
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    spread = sum(float((x**2).sum()) for x in centred)
    # tr((C_a C_b)^(1/2)) is the sum of the singular values of X_a X_b^T, or of R_a R_b^T.
    left, right = (np.asarray(np.linalg.qr(x, mode="r")) for x in centred)
    cross = float(np.linalg.svd(left @ right.T, compute_uv=False).sum())
    return max(float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()) + spread - 2 * cross, 0.0)


def frechet_infinity(a: NDArray[Any], b: NDArray[Any], seed: int = 0, points: int = 12) -> float:
    """`frechet_distance` extrapolated to infinitely many clips of `b`.

    The bias of the distance falls as 1/N; a straight line through distances of random parts of `b`,
    over 1/N, is read at 0 (Chong and Forsyth 2020; Gui et al. 2024 for audio). May come out below
    zero for sets of one law.

    Args:
        a: `[N, D]`, the reference, taken as it is.
        b: `[M, D]`, M of at least 8.
        seed: of the choice of parts.
        points: sizes from M / 2 to M.

    Raises:
        ValueError: too few rows.
    """
    a, b = _pair(a, b)
    if len(b) < 8:
        raise ValueError(f"extrapolation needs at least 8 clips, got {len(b)}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(len(b) // 2, len(b), points).astype(int))
    found = [
        frechet_distance(a, b[rng.choice(len(b), size=int(size), replace=False)]) for size in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def kernel_distance(
    a: NDArray[Any], b: NDArray[Any], *, paired: bool = False, width: float | None = None
) -> float:
    """Kernel audio distance: 100 times the unbiased squared MMD (Chung et al. 2025; Gretton 2012).

    A Gaussian kernel whose width is the median distance between rows of the reference `a`. Its
    expectation is 0 for sets of one law, at any size, so single values may lie below zero.

    Args:
        a, b: `[N, D]` and `[M, D]`.
        paired: row i of both may depend on each other (one seed): their own pairs are left out, as
            the estimate supposes independent rows. Equal sets are then at 0.
        width: of the kernel; None takes it from `a`. A permutation test needs one that does not
            change with the labels (`median_distance` of all rows).

    Raises:
        ValueError: fewer than two rows, or unequal widths.
    """
    a, b = _pair(a, b)
    within = _squared_distances(a, a)
    width = _median(within) if width is None else width
    gamma = 1 / (2 * width**2 + 1e-8)

    def off_diagonal(squares: Array) -> float:
        n = len(squares)
        return float((np.exp(-gamma * squares).sum() - n) / (n * (n - 1)))

    between = np.exp(-gamma * _squared_distances(a, b))
    cross = float(between.mean())
    if paired:
        n = len(between)
        cross = float((between.sum() - np.trace(between)) / (n * (n - 1)))
    own = off_diagonal(within) + off_diagonal(_squared_distances(b, b))
    return KAD_SCALE * (own - 2 * cross)


def median_distance(rows: NDArray[Any]) -> float:
    """The (lower) median of the distances between rows, `[N, D]`."""
    rows = np.asarray(rows, np.float64)
    return _median(_squared_distances(rows, rows))


def _median(squares: Array) -> float:
    values = np.sqrt(squares[np.triu_indices(len(squares), 1)])
    return float(np.sort(values)[(len(values) - 1) // 2])


def _squared_distances(a: Array, b: Array) -> Array:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    if a is b:
        np.fill_diagonal(squares, 0.0)
    clipped: Array = squares.clip(min=0.0)
    return clipped


def _pair(a: NDArray[Any], b: NDArray[Any]) -> tuple[Array, Array]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected [N, D] and [M, D], not {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"at least two rows a side, got {len(a)} and {len(b)}")
    return a, b


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
