"""Distances between two sets of embeddings: Fréchet, Fréchet without its sample bias, kernel.

All take `[N, D]` arrays, one row a clip, and compute in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
