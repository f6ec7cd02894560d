"""Figures with their uncertainty: no number of this package travels without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 50  # clips a side below which a figure is shown as an interval only
FEW_MARK = "*"
FEW_NOTE = f"{FEW_MARK} fewer than {FEW} clips: an interval, but no single value"
Z95 = 1.959964

Statistic = Callable[..., float]


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval.

    Attributes:
        value: of all clips.
        low, high: the interval.
        clips: clips of the smaller side.
    """

    value: float
    low: float
    high: float
    clips: int

    @property
    def few(self) -> bool:
        """Whether there are too few clips for the value to be shown by itself."""
        return self.clips < FEW

    def text(self, digits: int = 2) -> str:
        """For tables: `8.41 (7.90 to 8.92)`, or `7.90 to 8.92*` when there are few clips."""
        value, low, high = (
            f"{round(x, digits) + 0.0:.{digits}f}" for x in (self.value, self.low, self.high)
        )
        span = f"{low} to {high}"
        return f"{span}{FEW_MARK}" if self.few else f"{value} ({span})"

    def as_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval_95": [self.low, self.high],
            "clips": self.clips,
            "few_clips": self.few,
        }


def bootstrap(
    statistic: Statistic,
    *sides: NDArray[Any],
    paired: bool,
    rounds: int = 200,
    seed: int = 0,
    least: float = -np.inf,
) -> Figure:
    """A statistic of one or more sets of clips, with a bootstrap interval (Efron 1979).

    The interval is value +- 1.96 standard deviations of the resampled values. (Percentiles would
    be off for distances: resampling repeats clips, which lifts every resampled distance.)

    Args:
        statistic: takes the sides' rows.
        sides: `[N, ...]` each, one row a clip.
        paired: row i is the same prompt and seed on every side: resample rows together.
        rounds: resamples.
        seed: of the resampling.
        least: what the statistic cannot lie below, nor its interval.

    Raises:
        ValueError: paired sides of unequal length.
    """
    if paired and len({len(side) for side in sides}) > 1:
        raise ValueError(f"paired sides must be equally long: {[len(s) for s in sides]}")
    rng = np.random.default_rng(seed)
    value = statistic(*sides)
    found = []
    for _ in range(rounds):
        rows = _rows(rng, sides, paired)
        found.append(statistic(*(s[i] for s, i in zip(sides, rows, strict=True))))
    spread = Z95 * float(np.std(found, ddof=1))
    return Figure(
        value, max(value - spread, least), value + spread, min(len(side) for side in sides)
    )


def _rows(
    rng: np.random.Generator, sides: Sequence[NDArray[Any]], paired: bool
) -> list[NDArray[np.int64]]:
    if paired:
        return [rng.integers(len(sides[0]), size=len(sides[0]))] * len(sides)
    return [rng.integers(len(side), size=len(side)) for side in sides]


def mean(values: NDArray[Any], **options: Any) -> Figure:
    """The mean of one value a clip, with its interval."""
    return bootstrap(lambda v: float(v.mean()), values, paired=True, **options)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    p = hits / n
    middle = p + Z95**2 / (2 * n)
    half = Z95 * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)))
    scale = 1 + Z95**2 / n
    return (middle - half) / scale, (middle + half) / scale


def permutation_p(
    statistic: Statistic, a: NDArray[Any], b: NDArray[Any], rounds: int = 500, seed: int = 0
) -> float:
    """How likely a statistic at least this large is if both sides follow one law.

    Row i of both sides is one prompt and seed: which of the two is called `a` is then arbitrary,
    so members of random pairs change places (Fisher 1935).

    Args:
        statistic: larger means further apart.
        a, b: `[N, ...]`.
        rounds: random rearrangements; the least p is 1 / (rounds + 1).
        seed: of the rearrangements.
    """
    rng = np.random.default_rng(seed)
    real = statistic(a, b)
    shape = (len(a),) + (1,) * (a.ndim - 1)
    reached = 0
    for _ in range(rounds):
        swap = rng.random(shape) < 0.5
        reached += statistic(np.where(swap, b, a), np.where(swap, a, b)) >= real - 1e-12
    return (reached + 1) / (rounds + 1)
