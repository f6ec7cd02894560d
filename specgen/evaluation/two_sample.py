"""Do two sides' tokens follow one law? A permutation test, and what it could have seen.

Counts of tokens and of neighbouring tokens are compared between the sides. The clips (not the
tokens, which depend on each other) are what is exchanged, so the test is exact at any number of
clips; all statistics are judged together (Westfall and Young 1993), so that looking at many of them
does not raise the false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.01
WANTED_POWER = 0.9
SHIFTS = (0.4, 0.2, 0.1, 0.05, 0.02, 0.01)
_RARE = 8  # tokens seen fewer times on both sides together are counted as one
_PAIR_BINS = 256

Codes = NDArray[np.int64]
Tables = dict[str, NDArray[np.float64]]
Features = Callable[[Codes], Tables]


def clip_features(codes: Codes) -> Tables:
    """Counts in every clip: tokens of each codebook, and pairs in time and across codebooks.

    Args:
        codes: `[N, K, T]`.

    Returns:
        `[N, bins]` a statistic.
    """
    _, K, T = codes.shape
    made = {f"k{k + 1}": _counts(codes[:, k]) for k in range(K)}
    for k in range(K if T > 1 else 0):
        made[f"k{k + 1} in time"] = _pairs(codes[:, k, :-1], codes[:, k, 1:])
    for k in range(K - 1):
        made[f"k{k + 1} with k{k + 2}"] = _pairs(codes[:, k], codes[:, k + 1])
    return made


def position_features(codes: Codes) -> Tables:
    """The token at every place of short clips, and every two places up to a frame apart.

    Args:
        codes: `[N, K, T]` with many N and few T.

    Returns:
        `[N, bins]` a statistic.
    """
    _, K, T = codes.shape
    flat = codes.transpose(0, 2, 1).reshape(len(codes), -1)
    names = [f"frame {t + 1} k{k + 1}" for t in range(T) for k in range(K)]
    made = {name: _counts(flat[:, [i]]) for i, name in enumerate(names)}
    for i, first in enumerate(names):
        for j in range(i + 1, min(i + K + 1, len(names))):
            made[f"{first}, {names[j]}"] = _pairs(flat[:, [i]], flat[:, [j]])
    return made


def _pairs(a: Codes, b: Codes) -> NDArray[np.float64]:
    mixed = (a * 1_000_003 + b * 7_919 + 12_345) % 2_147_483_647
    small = int(max(a.max(), b.max())) + 1
    if small**2 <= _PAIR_BINS:
        return _counts(a * small + b)
    return _counts(mixed % _PAIR_BINS)


def _counts(values: Codes) -> NDArray[np.float64]:
    """`[N, n]` values to counts `[N, bins]`, rare values in one bin."""
    _, place = np.unique(values, return_inverse=True)
    place = place.reshape(values.shape)
    common = np.bincount(place.ravel()) >= _RARE
    bins = np.where(common, np.cumsum(common), 0)[place]
    table = np.zeros((len(values), int(common.sum()) + 1))
    np.add.at(table, (np.arange(len(values))[:, None], bins), 1)
    return table


@dataclass(frozen=True)
class Comparison:
    """What the test found.

    Attributes:
        p: of all statistics together; small means that the sides differ.
        variation: per statistic, the total variation between the two sides' frequencies.
        expected: per statistic, its mean if both sides follow one law.
        worst: the statistic that stands out most.
        clips: a side.
        detectable: the smallest shift (total variation of each codebook's token frequencies) of
            `SHIFTS` that the test catches with `power`; None if not even the largest is caught, or
            if this was not simulated.
        power: the share of simulated runs in which it was caught.
    """

    p: float
    variation: dict[str, float]
    expected: dict[str, float]
    worst: str
    clips: int
    detectable: float | None = None
    power: float | None = None

    @property
    def differs(self) -> bool:
        return self.p <= ALPHA

    def as_dict(self) -> dict[str, Any]:
        return {
            "p": self.p,
            "alpha": ALPHA,
            "differs": self.differs,
            "worst": self.worst,
            "clips": self.clips,
            "detectable_shift": self.detectable,
            "power": self.power,
            "total_variation": self.variation,
            "expected_total_variation": self.expected,
        }


def compare(
    a: Codes,
    b: Codes,
    *,
    features: Features = clip_features,
    rounds: int = 999,
    seed: int = 0,
) -> Comparison:
    """The test of two sides' clips.

    Args:
        a, b: `[N, K, T]`; clip i of both is one prompt.
        features: what to count.
        rounds: random exchanges; the least p is 1 / (rounds + 1).
        seed: of the exchanges.

    Raises:
        ValueError: sides of unequal shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"sides must have one shape, not {a.shape} and {b.shape}")
    N = len(a)
    tables = features(np.concatenate([a, b]))
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(rounds + 1, N))
    signs[0] = 1  # as it really is
    variation, expected, scores = {}, {}, []
    for name, table in tables.items():
        total = table.sum(axis=0)
        apart = signs @ (table[:N] - table[N:])
        statistic = (apart**2 / np.maximum(total, 1)).sum(axis=1)
        spread = statistic[1:].std()
        scores.append((statistic - statistic[1:].mean()) / (spread if spread > 0 else 1.0))
        shares = np.abs(apart).sum(axis=1) / total.sum()
        variation[name], expected[name] = float(shares[0]), float(shares[1:].mean())
    highest = np.max(scores, axis=0)
    p = float((1 + (highest[1:] >= highest[0] - 1e-9).sum()) / (rounds + 1))
    worst = list(tables)[int(np.argmax([score[0] for score in scores]))]
    return Comparison(p, variation, expected, worst, N)


def shifted(codes: Codes, share: float, rng: np.random.Generator) -> Codes:
    """Tokens as a biased sampler would draw them: `share` of each codebook's mass has moved.

    A token outside a random half of the codebook's mass is replaced, often enough that a share
    `share` of all tokens is, by tokens within that half, in proportion to their frequency.

    Args:
        codes: `[N, K, T]`.
    """
    out = codes.copy()
    for k in range(codes.shape[1]):
        kinds, counts = np.unique(codes[:, k], return_counts=True)
        if len(kinds) < 2:
            continue
        order = rng.permutation(len(kinds))
        mass = np.cumsum(counts[order]) / counts.sum()
        inside = order[: max(1, int((mass <= 0.5).sum()))]
        outside = ~np.isin(codes[:, k], kinds[inside])
        moved = outside & (rng.random(outside.shape) < share / max(float(outside.mean()), share))
        weights = counts[inside] / counts[inside].sum()
        out[:, k][moved] = rng.choice(kinds[inside], size=int(moved.sum()), p=weights)
    return out


def power(
    a: Codes,
    b: Codes,
    share: float,
    *,
    features: Features = clip_features,
    runs: int = 20,
    seed: int = 0,
) -> float:
    """How often the test catches a shift, by simulation on resampled clips of both sides.

    Args:
        share: total variation between the sides' token frequencies, see `shifted`.
    """
    rng = np.random.default_rng(seed)
    pool = np.concatenate([a, b])
    caught = 0
    for run in range(runs):
        one, other = (pool[rng.integers(len(pool), size=len(a))] for _ in range(2))
        found = compare(
            one, shifted(other, share, rng), features=features, rounds=199, seed=seed + run
        )
        caught += found.differs
    return caught / runs


def with_power(
    found: Comparison, a: Codes, b: Codes, *, features: Features = clip_features, runs: int = 20
) -> Comparison:
    """The comparison with the smallest shift that it would have caught with `WANTED_POWER`."""
    best: tuple[float | None, float | None] = (None, None)
    for share in SHIFTS:
        reached = power(a, b, share, features=features, runs=runs)
        if reached < WANTED_POWER:
            best = best if best[0] is not None else (None, reached)
            break
        best = (share, reached)
    return replace(found, detectable=best[0], power=best[1])


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
