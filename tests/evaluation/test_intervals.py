import numpy as np
import pytest

from specgen.evaluation.distances import frechet_distance
from specgen.evaluation.two_sample import FEW, Figure, bootstrap, mean, permutation_p, wilson


def test_few_clips_never_give_a_bare_number() -> None:
    few, many = Figure(8.4, 7.1, 9.9, FEW - 1), Figure(8.4, 7.1, 9.9, FEW)
    assert few.text() == "7.10 to 9.90*"
    assert many.text() == "8.40 (7.10 to 9.90)"
    assert few.as_dict()["few_clips"] and not many.as_dict()["few_clips"]


def test_interval_of_a_mean_covers_it() -> None:
    """95 % intervals of 300 normal samples of 40: 285 are expected to cover, 270 are required."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        figure = mean(rng.normal(3, 2, size=40), seed=i, rounds=100)
        hits += figure.low <= 3 <= figure.high
    assert hits >= 270


def test_interval_of_a_distance_covers_what_new_clips_would_give() -> None:
    rng = np.random.default_rng(1)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + 0.7

    expected = np.mean([frechet_distance(*draw()) for _ in range(400)])
    hits = 0
    for i in range(60):
        figure = bootstrap(frechet_distance, *draw(), paired=False, rounds=60, seed=i)
        hits += figure.low <= expected <= figure.high
    assert hits >= 51


def test_identical_paired_sides_have_no_spread() -> None:
    side = np.random.default_rng(2).normal(size=(20, 4))
    figure = bootstrap(frechet_distance, side, side, paired=True, rounds=20)
    assert figure.high - figure.low < 1e-6


def test_paired_sides_must_be_equally_long() -> None:
    with pytest.raises(ValueError, match="equally long"):
        bootstrap(frechet_distance, np.zeros((3, 2)), np.zeros((4, 2)), paired=True)


def test_permutation_test_keeps_its_level_and_sees_a_shift() -> None:
    """200 tests at 0.05 of sides of one law: 10 expected, more than 22 has probability 1e-4."""
    rng = np.random.default_rng(3)

    def far(a: np.ndarray, b: np.ndarray) -> float:
        return abs(float(a.mean() - b.mean()))

    ps = [
        permutation_p(far, rng.normal(size=30), rng.normal(size=30), rounds=99, seed=i)
        for i in range(200)
    ]
    assert sum(p <= 0.05 for p in ps) <= 22
    assert permutation_p(far, rng.normal(size=30), rng.normal(size=30) + 2, rounds=99) == 0.01


def test_wilson() -> None:
    low, high = wilson(96, 96)
    assert high == pytest.approx(1) and low == pytest.approx(0.9615, abs=1e-4)
